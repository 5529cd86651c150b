/*
 * One thread writes numbered samples and flushes now and then, the other takes them: they come in
 * order, none twice. To be run with a thread sanitizer.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "fifo.h"

#define SAMPLES 2000000u
#define AT_ONCE 480u
#define NUMBERS 30000u /* a sample is its number modulo this */

static struct fifo fifo;
static _Atomic bool is_over;

static void *produce(void *unused)
{
    int16_t samples[AT_ONCE];

    (void)unused;
    for (uint32_t written = 0; written < SAMPLES;) {
        for (uint32_t i = 0; i < AT_ONCE; i++)
            samples[i] = (int16_t)((written + i) % NUMBERS);
        written += (uint32_t)fifo_write(&fifo, samples, AT_ONCE, (int64_t)written);
        if (written % 97 == 0)
            fifo_flush(&fifo);
    }
    atomic_store(&is_over, true);
    return NULL;
}

int main(void)
{
    pthread_t producer;
    float samples[AT_ONCE];
    uint32_t last = 0, taken = 0;
    int64_t ahead;

    fifo_init(&fifo);
    if (pthread_create(&producer, NULL, produce, NULL) != 0)
        return 2;
    for (;;) {
        bool was_over = atomic_load(&is_over);
        uint32_t n = fifo_ready(&fifo);

        if (n == 0 && was_over)
            break;
        if (n > AT_ONCE)
            n = AT_ONCE;
        fifo_take(&fifo, samples, n);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t number = (uint32_t)(samples[i] * 32768.0f + 0.5f);

            /* The next one, but for what a flush leaves out: at most what the buffer holds. */
            ahead = ((int64_t)number - last + NUMBERS) % NUMBERS;
            if (taken > 0 && (ahead == 0 || ahead > FIFO_SAMPLES + 1)) {
                fprintf(stderr, "%u after %u\n", number, last);
                return 1;
            }
            last = number;
            taken++;
        }
    }
    pthread_join(producer, NULL);
    return taken > 0 ? 0 : 1;
}
