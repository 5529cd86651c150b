/* What the bulk rows compare with: it moves a file's bytes to another file, from one process to
   another.  Prints nanoseconds from the first byte to the end of the receiving process.
   usage: file_to_file splice|pipe FD_IN FD_OUT CORE CORE PIPE_BYTES
   splice: through a pipe without a copy to user space; pipe: read(2) and write(2). */
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>

#include "pingpong.h"

static char buffer[1 << 20];

static void move(int splicing, int from, int to, size_t chunk)
{
    for (;;) {
        ssize_t count, done = 0;

        if (splicing) {
            count = splice(from, NULL, to, NULL, chunk, SPLICE_F_MOVE);
            if (count <= 0)
                break;
            continue;
        }
        count = read(from, buffer, chunk);
        if (count <= 0)
            break;
        while (done < count) {
            ssize_t put = write(to, buffer + done, (size_t)(count - done));

            if (put < 0)
                die("write");
            done += put;
        }
    }
}

int main(int argc, char **argv)
{
    int ends[2], in, out, splicing, status;
    size_t chunk;
    long long start;
    pid_t child;

    if (argc != 7)
        return 2;
    splicing = !strcmp(argv[1], "splice");
    in = atoi(argv[2]);
    out = atoi(argv[3]);
    chunk = (size_t)atol(argv[6]);
    if (chunk > sizeof buffer || pipe(ends) || fcntl(ends[1], F_SETPIPE_SZ, (int)chunk) < 0)
        die("pipe");
    start = now_ns();
    child = fork_pinned(atoi(argv[4]), atoi(argv[5]));
    if (child == 0) {
        close(ends[1]);
        move(splicing, ends[0], out, chunk);
        return 0;
    }
    close(ends[0]);
    move(splicing, in, ends[1], chunk);
    close(ends[1]);
    if (wait(&status) < 0 || status)
        return 1;
    printf("%lld\n", now_ns() - start);
    return 0;
}
