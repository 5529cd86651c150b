/*
 * What the agent makes to have a service started: its streams, and the question to its keeper. Each is
 * a handful of system calls, and would be three times as many steps of the interpreter.
 */
#ifndef PEDOS_SERVICE_START_H
#define PEDOS_SERVICE_START_H

#include <stddef.h>
#include <stdint.h>

/* Two ends each of stdin, stdout and stderr: ours, and then those of the service. */
#define PV_SERVICE_FDS 6
/* What comes with a question: stdin, stdout and stderr of the service. */
#define PV_KEEPER_FDS_MAX 3

/* Two socket pairs, and a pipe for stderr, or -1 twice. 0; or -errno, and none is open then. */
int pv_service_streams(int *fds, int with_stderr);

/*
 * Connects to the socket (SOCK_SEQPACKET) at a path of any length, and sends it a packet with the
 * service's ends of streams that are made for it. Waits for nothing. 0, and at `fds` our ends of the
 * streams and then the connection: PV_KEEPER_FDS_MAX + 1; or -errno: then nothing was sent.
 */
int pv_keeper_ask(const char *path, const uint8_t *packet, size_t length, int with_stderr, int *fds);

#endif
