"""Builds the C extension `pedos_vchan._native` (cffi in API mode, CPython's stable ABI)."""

from cffi import FFI

# What Python sees of native/csrc. The structures stay opaque: their fields belong to C.
DECLARATIONS = """
#define PV_WOULD_BLOCK ...
#define PV_CLOSED ...
#define PV_DIED ...
#define PV_BROKEN ...
#define PV_FLOODED ...

struct pv_channel;
int pv_orders_valid(unsigned left_order, unsigned right_order);
int pv_channel_watch(struct pv_channel *channel, int live_fd);
int pv_channel_client_came(const struct pv_channel *channel);
int pv_channel_failure(const struct pv_channel *channel);
int pv_channel_wait_fd(const struct pv_channel *channel);
void pv_channel_collect(struct pv_channel *channel);
int64_t pv_channel_send(struct pv_channel *channel, const uint8_t *bytes, size_t count);
int64_t pv_channel_room(struct pv_channel *channel);
int64_t pv_channel_peek(struct pv_channel *channel, size_t max, uint8_t **span);
void pv_channel_consume(struct pv_channel *channel, uint32_t count);
int64_t pv_channel_turn(struct pv_channel *channel, const uint8_t *out, size_t count,
                        int64_t *sent, char *in, size_t max);
int pv_channel_is_armed(const struct pv_channel *channel);
void pv_channel_share_loop(int is_shared);
int pv_channel_mute(struct pv_channel *channel, int muted);
int pv_channel_event_fd(const struct pv_channel *channel);
void pv_channel_woken(struct pv_channel *channel);
void pv_channel_close(struct pv_channel *channel);
void pv_channel_free(struct pv_channel *channel);

int pv_shm_create(unsigned left_order, unsigned right_order, struct pv_channel **channel,
                  int descriptors[3]);
int pv_shm_join(int memfd, int event_fd, int notify_fd, struct pv_channel **channel);

int pv_xen_load(const char **problem);
int pv_xen_serve(unsigned domain, unsigned peer, unsigned port, unsigned left_order,
                 unsigned right_order, struct pv_channel **channel);
void pv_xen_admit(struct pv_channel *channel);
int pv_xen_join(unsigned domain, unsigned peer, unsigned port, struct pv_channel **channel);
int pv_xen_guard(struct pv_channel *channel, int fd);
int pv_xen_guard_news(void);
int pv_xen_guard_blind(void);

#define PV_TICK_NS ...
#define PV_TICK_NS_MAX ...
struct pv_running { int64_t seen, lost; unsigned silent, limit; ...; };
int pv_running_tick(struct pv_running *running, int64_t now, int is_alive);
int pv_running_start(void);
void pv_running_look(struct pv_running *running);
void pv_running_limit(unsigned ticks, int words);
void pv_running_alive(void);

struct pv_store;
int pv_store_open(struct pv_store **store);
void pv_store_close(struct pv_store *store);
int64_t pv_store_read(struct pv_store *store, const char *path, char *into, size_t max);
int64_t pv_store_list(struct pv_store *store, const char *path, char *into, size_t max);
int pv_store_write(struct pv_store *store, const char *path, const char *value, size_t length);
int pv_store_remove(struct pv_store *store, const char *path);
int pv_store_watch(struct pv_store *store, const char *path);
int pv_store_unwatch(struct pv_store *store, const char *path);
int64_t pv_store_event(struct pv_store *store, char *into, size_t max);
int pv_store_fileno(struct pv_store *store);

#define PV_PUMP_INPUT_ENDED ...
#define PV_PUMP_INPUT_FAILED ...
#define PV_PUMP_OUTPUT_FAILED ...
#define PV_PUMP_PEER_CLOSED ...
#define PV_PUMP_PEER_DIED ...
#define PV_PUMP_PEER_BROKEN ...
#define PV_PUMP_PEER_FLOODED ...
#define PV_PUMP_CANCELLED ...
#define PV_PUMP_FAILED ...
struct pv_pump { uint64_t to_ring, to_fd; int why, error; ...; };
int pv_pump_init(struct pv_pump *pump);
void pv_pump_cancel(struct pv_pump *pump);
void pv_pump_run(struct pv_pump *pump, struct pv_channel *channel, int fd_in, int fd_out);
void pv_pump_done(struct pv_pump *pump);
"""

# cffi's generated functions leave some parameters unused; our own files are compiled without this.
PREAMBLE = """
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include "channel.h"
#include "pump.h"
#include "running.h"
#include "shm.h"
#include "xen.h"
"""

XEN = ("xen", "xen_guard", "xen_load", "xen_presence", "xen_store")
PARTS = ("ring", "halt_poll", "channel", "shm", "pump", "running", *XEN)
SOURCES = [f"native/csrc/{name}.c" for name in PARTS]
HEADERS = [f"native/csrc/{name}.h" for name in ("ring", "channel", "shm", "pump", "running", "xen")]
HEADERS += ["native/csrc/halt_poll.h", "native/csrc/xen_internal.h"]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra"]

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source(
    "pedos_vchan._native",
    PREAMBLE,
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["native/csrc"],
    extra_compile_args=FLAGS,
)
