#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

static const char HELP[] =
    "usage: pedos-sound [--socket PATH] [--verbose]\n"
    "\n"
    "Lends microphones of this user's sound server to other VMs, and offers programs here those\n"
    "that were borrowed from other VMs. The agent of this VM says which. A microphone is recorded\n"
    "only while somebody in the other VM records.\n"
    "\n"
    "It runs in the user's session (systemctl --user status pedos-sound) and needs PipeWire with\n"
    "pipewire-pulse, or PulseAudio. It waits for the agent and for the sound server.\n"
    "\n"
    "options:\n"
    "  --socket PATH  the agent's socket (/run/pedos/sound.sock, in dom0\n"
    "                 /run/pedos-agent/sound.sock)\n"
    "  --verbose      says on standard error what happens\n"
    "  --version      prints the version\n"
    "  --help         prints this\n"
    "\n"
    "examples:\n"
    "  pedos-sound --verbose                       see what it does\n"
    "  systemctl --user restart pedos-sound        start it again\n";

void options_parse(struct options *options, int argc, char **argv)
{
    static const struct option LONG[] = {
        {"socket", required_argument, NULL, 's'},
        {"verbose", no_argument, NULL, 'v'},
        {"version", no_argument, NULL, 'V'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int option;

    *options = (struct options){0};
    while ((option = getopt_long(argc, argv, "hv", LONG, NULL)) != -1) {
        switch (option) {
        case 's':
            options->socket = optarg;
            break;
        case 'v':
            options->is_verbose = true;
            break;
        case 'V':
            puts("pedos-sound " PEDOS_VERSION);
            exit(0);
        case 'h':
            fputs(HELP, stdout);
            exit(0);
        default:
            fputs("pedos-sound: try --help\n", stderr);
            exit(2);
        }
    }
    if (optind < argc) {
        fprintf(stderr, "pedos-sound: takes no arguments: try --help\n");
        exit(2);
    }
}
