/*
 * Owners that come and go, from several threads, whose lines begin and end all the time: closer_soak
 * ROUNDS. Every pipe is closed, and every line and owner is gone at the end. The tests build this
 * with sanitizers.
 */
#include <stdio.h>

#include "closer.c"

#define THREADS 4
#define OWNERS 3
#define OPEN_MAX 200 /* of what waits: a process has no more than some hundred descriptors */
#define LIMIT 10000  /* ms */

static int rounds;

static void *give(void *arg)
{
    for (int round = 0; round < rounds; round++) {
        struct pc_owner *owners[OWNERS];
        int ends[2];

        for (int i = 0; i < OWNERS; i++) {
            owners[i] = pc_owner_new();
            if (!owners[i] || pipe(ends) || pc_close(owners[i], ends, 2, round % 3, round % 2))
                abort();
        }
        for (int i = 0; i < OWNERS; i++)
            pc_owner_free(owners[i]);
        while (pc_open() > OPEN_MAX)
            usleep(50);
    }
    return arg;
}

static bool is_over(void)
{
    bool answer;

    pthread_mutex_lock(&all.lock);
    answer = !pc_open() && !all.lines && all.shared.users == 1;
    pthread_mutex_unlock(&all.lock);
    return answer;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];

    rounds = argc == 2 ? atoi(argv[1]) : 0;
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, give, NULL))
            abort();
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; !is_over(); i++)
        if (i == LIMIT || usleep(1000))
            return 1;
    printf("rounds %d\n", rounds);
    return 0;
}
