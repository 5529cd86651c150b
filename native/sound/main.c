/* pedos-sound: microphones between this user's sound server and the agent. See --help. */
#include "options.h"

#include <pulse/mainloop.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct options options;
    pa_mainloop *loop;
    int status = 0;

    options_parse(&options, argc, argv);
    loop = pa_mainloop_new();
    if (!loop) {
        fputs("pedos-sound: out of memory\n", stderr);
        return 1;
    }
    pa_mainloop_run(loop, &status);
    pa_mainloop_free(loop);
    return status;
}
