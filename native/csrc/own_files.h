/*
 * A descriptor that one thread has alone for a while.
 *
 * What a process has open is closed when the last of its threads is gone that shares its table of
 * descriptors. A killed thread is gone when it returns from the kernel, where it may wait for
 * another program's answer and for no signal. If that answer would have to come through a
 * descriptor of its own process, as from a disk whose bytes another thread passes on, neither ends:
 * the descriptor stays open, nobody sees that the process is dead, and it cannot be started again.
 * One that only the passing thread has is closed as soon as the process is killed.
 */
#ifndef PEDOS_OWN_FILES_H
#define PEDOS_OWN_FILES_H

/*
 * Runs work(arg) in a thread with a table of its own, which has the standard streams and `fds`
 * (-1: none) under the numbers that they have; returns when it is over. The first of `fds`,
 * which is no standard stream, is nowhere else meanwhile: for the other threads its number is a
 * placeholder's. It is back afterwards, if there is room for it.
 *
 * 0; -errno: work was not run. That is so where Linux, or who restricts this process, does not know
 * or allow the calls (close_range(2), Linux 5.9; pidfd_getfd(2), 5.6), and for want of threads or
 * descriptors.
 */
int pv_own_files_run(const int *fds, unsigned count, void (*work)(void *), void *arg);

#endif
