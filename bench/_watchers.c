/* Many WebSocket clients in one thread: connects them, reads what comes, and notes when.
 *
 * watchers PORT CLIENTS AT_ONCE SILENT MARK REQUEST [HELLO…]
 *
 * Connects CLIENTS sockets to 127.0.0.1, at most AT_ONCE handshakes under way, each with the head
 * REQUEST and then a text message for each HELLO. The first SILENT of them shake hands and read
 * nothing from then on. A frame's number is what follows MARK in it; frames without one (replies,
 * compressed ones) are counted all the same. Pings are answered, the protocol's and Centrifuge's.
 *
 * Lines on standard output: {"connected_s"} when every handshake is answered, {"served_s"} when
 * every reading client has its first frame, both since the start; and for each line "report" on
 * standard input what came since the last one: by number who has seen it and when, and in "all" since
 * when everybody who reads has seen at least a number (numbers rise, and a frame may stand for those
 * before it). The end of standard input ends it. Instants are the wall clock's, in microseconds. Exit code 1 with a line on standard error: it could not go on.
 *
 * Frames from a server: https://www.rfc-editor.org/rfc/rfc6455#section-5.2 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 1024, READ_BYTES = 1 << 18, SILENT_BUFFER_BYTES = 16 * 1024, MOST_NUMBERS = 1 << 16 };
enum state { CLOSED, CONNECTING, SHAKING, OPEN };

struct client {
    int fd;
    enum state state;
    int silent, served;
    int64_t last;        /* the number of its latest frame */
    unsigned char *rest; /* the begin of a frame whose end has not come */
    size_t rest_bytes;
};

struct number {
    int64_t number, first_us, last_us;
    uint32_t clients;
};

struct floor {
    int64_t number, at_us;
};

static struct client *clients;
static struct number numbers[MOST_NUMBERS];
static struct floor floors[MOST_NUMBERS];
static int poller, count, at_once, begun, open_now, silent_count, served_count, lost;
static int said_connected, said_served, used_numbers, used_floors, at_lowest;
static int64_t lowest = -1; /* the least number that a reading client has come to */
static struct sockaddr_in server;
static const char *mark, *request;
static char **hellos;
static int hello_count;
static uint64_t frames, bytes;
static int64_t started_us;
static unsigned char buffer[READ_BYTES * 2];

static void die(const char *what)
{
    fprintf(stderr, "watchers: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void begin_one(void)
{
    struct client *client = &clients[begun];
    client->silent = begun++ < silent_count;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (client->fd < 0)
        die("socket");
    int one = 1, small = SILENT_BUFFER_BYTES;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (client->silent)
        setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (connect(client->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)
        die("connect");
    client->state = CONNECTING;
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = client};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, client->fd, &event) < 0)
        die("epoll_ctl");
}

static void end(struct client *client)
{
    close(client->fd);
    free(client->rest);
    client->rest = NULL;
    client->rest_bytes = 0;
    client->state = CLOSED;
    lost++;
}

/* One masked frame; the mask is four zeros. A full buffer for a few bytes is not waited for. */
static void say(struct client *client, unsigned char opcode, const void *data, size_t size)
{
    unsigned char frame[1024];
    size_t head = 6;
    frame[0] = 0x80 | opcode;
    if (size < 126) {
        frame[1] = 0x80 | (unsigned char)size;
    } else {
        frame[1] = 0x80 | 126;
        frame[2] = (unsigned char)(size >> 8);
        frame[3] = (unsigned char)size;
        head = 8;
    }
    if (size + head > sizeof frame)
        return;
    memset(frame + head - 4, 0, 4);
    memcpy(frame + head, data, size);
    if (send(client->fd, frame, head + size, MSG_NOSIGNAL) < 0 && errno != EAGAIN)
        end(client);
}

static void watch_for_input(struct client *client)
{
    struct epoll_event event = {.events = client->silent ? 0 : EPOLLIN, .data.ptr = client};
    epoll_ctl(poller, EPOLL_CTL_MOD, client->fd, &event);
}

static void opened(struct client *client)
{
    client->state = OPEN;
    for (int i = 0; i < hello_count; i++)
        say(client, 1, hellos[i], strlen(hellos[i]));
    if (client->silent)
        watch_for_input(client);
    if (++open_now == count && !said_connected++)
        printf("{\"connected_s\": %.6f}\n", (now_us() - started_us) / 1e6);
    if (begun < count)
        begin_one();
}

static void find_lowest(void)
{
    lowest = INT64_MAX;
    for (int i = silent_count; i < count; i++) {
        if (clients[i].last < lowest) {
            lowest = clients[i].last;
            at_lowest = 0;
        }
        at_lowest += clients[i].last == lowest;
    }
}

static void note(struct client *client, int64_t number, int64_t at_us)
{
    if (number == client->last)
        return;
    int was_lowest = client->last == lowest;
    client->last = number;
    if (was_lowest && !--at_lowest) {
        find_lowest();
        if (used_floors == MOST_NUMBERS) {
            errno = ENOSPC;
            die("too many numbers");
        }
        floors[used_floors++] = (struct floor){lowest, at_us};
    }
    int at = used_numbers - 1;
    while (at >= 0 && numbers[at].number != number)
        at--;
    if (at < 0) {
        if (used_numbers == MOST_NUMBERS) {
            errno = ENOSPC;
            die("too many numbers");
        }
        at = used_numbers++;
        numbers[at] = (struct number){number, at_us, at_us, 0};
    }
    numbers[at].clients++;
    numbers[at].last_us = at_us;
}

static void took(struct client *client, unsigned char first, const unsigned char *data, size_t size, int64_t at_us)
{
    switch (first & 0x0F) {
    case 1:
    case 2:
        break;
    case 8:
        end(client);
        return;
    case 9:
        say(client, 10, data, size);
        return;
    default:
        return;
    }
    if (size <= 3 && size >= 2 && !memcmp(data, "{}", 2)) {
        say(client, 1, "{}", 2);
        return;
    }
    const char *found = first & 0x40 ? NULL : memmem(data, size, mark, strlen(mark));
    if (hello_count && !found && !client->served && !(first & 0x40))
        return; /* the reply to a hello that brings no board */
    frames++;
    if (found)
        note(client, strtoll(found + strlen(mark), NULL, 10), at_us);
    if (!client->served) {
        client->served = 1;
        if (++served_count == count - silent_count && !said_served++)
            printf("{\"served_s\": %.6f}\n", (at_us - started_us) / 1e6);
    }
}

/* How many bytes of what came belong to whole frames, each of which was taken. */
static size_t take_frames(struct client *client, const unsigned char *data, size_t size, int64_t at_us)
{
    size_t done = 0;
    while (client->state == OPEN && size - done >= 2) {
        const unsigned char *frame = data + done;
        size_t head = 2, payload = frame[1] & 0x7F;
        if (payload == 126) {
            head = 4;
            if (size - done < head)
                break;
            payload = (size_t)frame[2] << 8 | frame[3];
        } else if (payload == 127) {
            head = 10;
            if (size - done < head)
                break;
            payload = 0;
            for (int i = 2; i < 10; i++)
                payload = payload << 8 | frame[i];
        }
        if (size - done < head + payload)
            break;
        took(client, frame[0], frame + head, payload, at_us);
        done += head + payload;
    }
    return done;
}

static void keep(struct client *client, const unsigned char *data, size_t size)
{
    /* What is kept may be what `data` points into. */
    unsigned char *rest = NULL;
    if (size) {
        rest = malloc(size);
        if (!rest)
            die("malloc");
        memcpy(rest, data, size);
    }
    free(client->rest);
    client->rest = rest;
    client->rest_bytes = size;
}

static void readable(struct client *client)
{
    size_t have = client->rest_bytes;
    if (have > READ_BYTES) {
        errno = EMSGSIZE;
        die("frame");
    }
    memcpy(buffer, client->rest ? client->rest : buffer, have);
    ssize_t came = recv(client->fd, buffer + have, READ_BYTES, 0);
    if (came < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (came <= 0) {
        end(client);
        return;
    }
    int64_t at_us = now_us();
    size_t size = have + (size_t)came, done = 0;
    if (client->state == SHAKING) {
        unsigned char *blank = memmem(buffer, size, "\r\n\r\n", 4);
        if (!blank) {
            keep(client, buffer, size);
            return;
        }
        if (size < 12 || memcmp(buffer, "HTTP/1.1 101", 12)) {
            fprintf(stderr, "watchers: refused: %.*s\n", (int)(size < 300 ? size : 300), buffer);
            exit(1);
        }
        done = (size_t)(blank - buffer) + 4;
        opened(client);
        if (client->silent)
            return;
    }
    bytes += size - done;
    done += take_frames(client, buffer + done, size - done, at_us);
    if (client->state == OPEN && (done < size || client->rest))
        keep(client, buffer + done, size - done);
}

static void happened(struct client *client, uint32_t events)
{
    if (client->state == CONNECTING) {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) {
            errno = error;
            die("connect");
        }
        if (send(client->fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request))
            die("handshake");
        client->state = SHAKING;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
        epoll_ctl(poller, EPOLL_CTL_MOD, client->fd, &event);
    } else if (client->silent && client->state == OPEN) {
        end(client); /* it asked for nothing: only the end of the connection comes */
    } else if (client->state != CLOSED && events) {
        readable(client);
    }
}

static void report(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("{\"frames\": %llu, \"bytes\": %llu, \"lost\": %d, \"cpu_s\": %.6f, \"seen\": [",
           (unsigned long long)frames, (unsigned long long)bytes, lost,
           used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    for (int i = 0; i < used_numbers; i++)
        printf("%s[%lld, %u, %lld, %lld]", i ? ", " : "", (long long)numbers[i].number, numbers[i].clients,
               (long long)numbers[i].first_us, (long long)numbers[i].last_us);
    printf("], \"all\": [");
    for (int i = 0; i < used_floors; i++)
        printf("%s[%lld, %lld]", i ? ", " : "", (long long)floors[i].number, (long long)floors[i].at_us);
    printf("]}\n");
    frames = bytes = 0;
    used_numbers = used_floors = 0;
}

/* Whether to go on. */
static int told(void)
{
    char line[64];
    ssize_t size = read(STDIN_FILENO, line, sizeof line);
    if (size <= 0)
        return 0;
    for (ssize_t i = 0; i < size; i++)
        if (line[i] == '\n')
            report();
    return 1;
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "watchers PORT CLIENTS AT_ONCE SILENT MARK REQUEST [HELLO...]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    count = atoi(argv[2]);
    at_once = atoi(argv[3]);
    silent_count = atoi(argv[4]);
    mark = argv[5];
    request = argv[6];
    hellos = argv + 7;
    hello_count = argc - 7;
    at_lowest = count - silent_count;
    clients = calloc((size_t)count, sizeof *clients);
    poller = epoll_create1(0);
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
    if (!clients || poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &input) < 0)
        die("start");
    for (int i = 0; i < count; i++)
        clients[i].last = lowest;
    started_us = now_us();
    while (begun < count && begun < at_once)
        begin_one();
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poller, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr)
                happened(events[i].data.ptr, events[i].events);
            else if (!told())
                return 0;
        }
    }
}
