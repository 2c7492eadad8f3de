/* The floor under bench/fanout.py: the least a server can do to send one frame to every WebSocket.
 *
 * broadcaster PORT BYTES
 *
 * Each line on standard input is a number; a text frame of BYTES bytes that bears it as "revision" is
 * built once and given to every client with one send(). A client whose buffer is full misses it.
 * Nothing is read from a client but its handshake, whose key must be the one of RFC 6455 §1.3: the
 * answer to it is known. The end of standard input ends it. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 1024, MOST_FDS = 1 << 16, FRAME_BYTES = 1 << 16 };

static const char ANSWER[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ==";

static int watchers[MOST_FDS], place[MOST_FDS], count, poller, listener;

static void die(const char *what)
{
    fprintf(stderr, "broadcaster: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void accept_all(void)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), one = 1;
        if (fd < 0)
            return;
        if (fd >= MOST_FDS)
            die("too many clients");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        place[fd] = -1;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static void leave(int fd)
{
    if (place[fd] >= 0) {
        int last = watchers[--count];
        watchers[place[fd]] = last;
        place[last] = place[fd];
    }
    close(fd);
}

/* A handshake comes whole: it is a few hundred bytes of one send() on this machine. */
static void readable(int fd)
{
    char data[4096];
    ssize_t size = recv(fd, data, sizeof data, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0 || (place[fd] < 0 && !memmem(data, (size_t)size, KEY, sizeof KEY - 1))) {
        leave(fd);
    } else if (place[fd] < 0) {
        send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL);
        place[fd] = count;
        watchers[count++] = fd;
    }
}

static void broadcast(const char *number, int payload)
{
    static char frame[4 + FRAME_BYTES];
    char head[64];
    int size = snprintf(head, sizeof head, "{\"revision\":%s,\"pad\":\"", number);
    frame[0] = (char)0x81;
    frame[1] = 126;
    frame[2] = (char)(payload >> 8);
    frame[3] = (char)payload;
    memset(frame + 4, 'x', (size_t)payload);
    memcpy(frame + 4, head, (size_t)size);
    memcpy(frame + 4 + payload - 2, "\"}", 2);
    for (int i = 0; i < count; i++)
        send(watchers[i], frame, 4 + (size_t)payload, MSG_NOSIGNAL);
}

static int told(int payload)
{
    char lines[4096];
    ssize_t size = read(STDIN_FILENO, lines, sizeof lines - 1);
    if (size <= 0)
        return 0;
    lines[size] = 0;
    for (char *line = strtok(lines, "\n"); line; line = strtok(NULL, "\n"))
        broadcast(line, payload);
    return 1;
}

int main(int argc, char **argv)
{
    int payload = argc == 3 ? atoi(argv[2]) : 0, one = 1;
    if (payload < 126 || payload >= FRAME_BYTES) {
        fprintf(stderr, "broadcaster PORT BYTES (126 to %d)\n", FRAME_BYTES - 1);
        return 2;
    }
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (listener < 0 || bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || listen(listener, 4096) < 0)
        die("listen");
    poller = epoll_create1(0);
    struct epoll_event input = {.events = EPOLLIN, .data.fd = STDIN_FILENO};
    struct epoll_event arrivals = {.events = EPOLLIN, .data.fd = listener};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &input) < 0 ||
        epoll_ctl(poller, EPOLL_CTL_ADD, listener, &arrivals) < 0)
        die("epoll");
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poller, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_all();
            else if (fd != STDIN_FILENO)
                readable(fd);
            else if (!told(payload))
                return 0;
        }
    }
}
