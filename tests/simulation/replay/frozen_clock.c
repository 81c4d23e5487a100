/* Preloaded into a server: its wall clock is a number in a shared file, which a test writes.

   CLOCK_MONOTONIC stays real: the server's timers need it, and no reply shows it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *now_us; /* Unix microseconds; NULL before `open_page`, when malloc asks */

__attribute__((constructor)) static void open_page(void) {
    int file = open(getenv("FROZEN_CLOCK"), O_RDONLY);
    void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) abort();
    close(file);
    now_us = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (now_us == NULL || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return syscall(SYS_clock_gettime, clock, now);
    int64_t us = *now_us;
    now->tv_sec = us / 1000000;
    now->tv_nsec = us % 1000000 * 1000;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now != NULL) *now = exact.tv_sec;
    return exact.tv_sec;
}

/* Valkey 9.1 adds the ticks of the processor to a time of up to 1 ms ago. It does not if it cannot
   see that the processor has a constant clock. */
FILE *fopen64(const char *path, const char *mode) {
    static FILE *(*next)(const char *, const char *);
    if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, "fopen64");
    return strcmp(path, "/proc/cpuinfo") ? next(path, mode) : NULL;
}
