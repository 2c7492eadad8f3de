/* A wall clock that is wrong by SHIFTED_CLOCK_S seconds, for one process (LD_PRELOAD).

   Only the wall clock is shifted, for whoever asks: Python, librdkafka, libpq. The steady clock stays
   right, as it does on a machine whose time was set wrongly. A wait that is to end at an instant of the
   wall clock is handed to the kernel in the kernel's own time: without that, a wait until "in 100 ms" by
   a clock that is an hour ahead takes an hour. librdkafka waits like this, by C11's cnd_timedwait. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>

/* `next` is the function of this name that everybody else has. */
#define NEXT(name)                       \
    static __typeof__(&name) next;       \
    if (!next) next = (__typeof__(&name))found(#name)

/* Waits whose condition counts on the steady clock name an instant since the start of the machine. */
#define LEAST_WALL_S 1000000000

static long shift_s(void) {
    static long shift;
    static int known;
    if (!known) {
        const char *text = getenv("SHIFTED_CLOCK_S");
        shift = text ? atol(text) : 0;
        known = 1;
    }
    return shift;
}

static void *found(const char *name) {
    /* Of these, glibc on x86-64 still has versions from before conditions were what they are. */
    void *next = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2");
    return next ? next : dlsym(RTLD_NEXT, name);
}

static int is_wall(clockid_t clock) { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE; }

static struct timespec kernels(const struct timespec *until) {
    struct timespec right = *until;
    if (right.tv_sec > LEAST_WALL_S) right.tv_sec -= shift_s();
    return right;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    NEXT(clock_gettime);
    int failed = next(clock, now);
    if (!failed && is_wall(clock)) now->tv_sec += shift_s();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    NEXT(gettimeofday);
    int failed = next(now, zone);
    if (!failed) now->tv_sec += shift_s();
    return failed;
}

time_t time(time_t *kept) {
    NEXT(time);
    time_t now = next(NULL) + shift_s();
    if (kept) *kept = now;
    return now;
}

int timespec_get(struct timespec *now, int base) {
    NEXT(timespec_get);
    int got = next(now, base);
    if (got == TIME_UTC) now->tv_sec += shift_s();
    return got;
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict lock, const struct timespec *restrict until) {
    NEXT(cnd_timedwait);
    struct timespec right = kernels(until);
    return next(condition, lock, &right);
}

int mtx_timedlock(mtx_t *restrict lock, const struct timespec *restrict until) {
    NEXT(mtx_timedlock);
    struct timespec right = kernels(until);
    return next(lock, &right);
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict lock,
                           const struct timespec *restrict until) {
    NEXT(pthread_cond_timedwait);
    struct timespec right = kernels(until);
    return next(condition, lock, &right);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict lock, const struct timespec *restrict until) {
    NEXT(pthread_mutex_timedlock);
    struct timespec right = kernels(until);
    return next(lock, &right);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    NEXT(sem_timedwait);
    struct timespec right = kernels(until);
    return next(semaphore, &right);
}
