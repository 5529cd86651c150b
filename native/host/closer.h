/*
 * Threads that close descriptors whose close(2) may wait, in lines: one for each owner, so that nobody
 * waits for another one's. No interpreter runs in them. pedos_host.passed says what it is for.
 */
#ifndef PEDOS_CLOSER_H
#define PEDOS_CLOSER_H

/* Whose descriptors they are. */
struct pc_owner;

/* NULL: no memory. */
struct pc_owner *pc_owner_new(void);

/* What it has given is closed all the same. */
void pc_owner_free(struct pc_owner *owner);

/* How many of its descriptors are not closed yet. Any thread. */
unsigned pc_owner_open(const struct pc_owner *owner);

/* The same of all owners. */
unsigned pc_open(void);

/*
 * Has its thread close so many descriptors; it ends when it has had nothing to do for idle_ms. While
 * lines_max other owners have a line of their own, the owner shares one with all that come late.
 * Where no thread can be started they stay until one can, for what is given next. 0; -ENOMEM: none
 * was taken.
 */
int pc_close(struct pc_owner *owner, const int *fds, unsigned count, unsigned lines_max,
             unsigned idle_ms);

#endif
