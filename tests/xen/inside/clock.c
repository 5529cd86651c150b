/*
 * What time it is in this domain, and what the processor's time stamp counter says then: the domains'
 * clocks go by that counter, each at its own idea of its speed, and are seconds apart after a while.
 *
 *   bench-clock     prints {"epoch": SECONDS, "ticks": COUNT}
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

#define TRIES 32

int main(void) {
    uint64_t least = UINT64_MAX, ticks = 0;
    struct timespec now = {0};
    for (int i = 0; i < TRIES; i++) { /* the one in which nothing came between */
        struct timespec read;
        uint64_t before = __rdtsc();
        clock_gettime(CLOCK_REALTIME, &read);
        uint64_t took = __rdtsc() - before;
        if (took < least) {
            least = took;
            ticks = before + took / 2;
            now = read;
        }
    }
    printf("{\"epoch\": %lld.%09ld, \"ticks\": %llu}\n", (long long)now.tv_sec, now.tv_nsec,
           (unsigned long long)ticks);
}
