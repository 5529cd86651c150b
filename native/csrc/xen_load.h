/*
 * Xen's libraries, loaded on first use: nothing here links with Xen, so that one build serves machines
 * with and without it.
 */
#ifndef PEDOS_XEN_LOAD_H
#define PEDOS_XEN_LOAD_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Loads the libraries; 0, or -ENOSYS and a sentence in *problem (if that is not NULL). */
int pv_xen_load(const char **problem);

/*
 * The parts of Xen that are used. Declared here and not included: the build must not need Xen's
 * headers. These interfaces are public: libxenvchan.h, xenevtchn.h, xengnttab.h, xenstore.h,
 * xencall.h and event_channel.h of Xen 4.17; the structure has begun like this since 4.5.
 */
struct libxenvchan_ring {
    void *indices;
    void *buffer;
    int order;
};

struct libxenvchan {
    void *grants; /* the handle of libxengnttab */
    struct vchan_interface *page;
    void *event; /* the handle of libxenevtchn */
    uint32_t event_port;
    int is_server : 1, server_persist : 1, blocking : 1;
    struct libxenvchan_ring read, write;
    char *xs_path; /* from 4.17 on; earlier, the library leaves the rendezvous there */
};

/* Who is told what a library has to say (xentoollog.h); NULL is stderr. */
struct xen_logger {
    void (*message)(struct xen_logger *, int level, int error, const char *context,
                    const char *format, va_list);
    void (*progress)(struct xen_logger *, const char *context, const char *what, int percent,
                     unsigned long done, unsigned long total);
    void (*destroy)(struct xen_logger *);
};

#define HYPERCALL_EVENT_CHANNEL 32 /* __HYPERVISOR_event_channel_op */
#define EVENT_CHANNEL_STATUS 5     /* EVTCHNOP_status */
#define STATUS_INTERDOMAIN 2u      /* EVTCHNSTAT_interdomain */
#define DOMAIN_SELF 0x7FF0u        /* DOMID_SELF */

struct evtchn_status {
    uint16_t domain;
    uint32_t port;
    uint32_t status, vcpu;
    struct {
        uint16_t domain;
        uint32_t port;
    } remote;
};

_Static_assert(sizeof(struct evtchn_status) == 24, "Xen's layout");

#define NO_TRANSACTION 0u
#define MAY_NOT 0u  /* XS_PERM_NONE */
#define MAY_READ 1u /* XS_PERM_READ */

struct xs_permissions {
    unsigned domain, bits; /* the first of several names the owner, and the rights of all others */
};

#define XEN_FUNCTIONS(X)                                                                           \
    X(VCHAN, struct libxenvchan *, libxenvchan_server_init,                                        \
      (void *logger, int domain, const char *path, size_t left, size_t right))                     \
    X(VCHAN, struct libxenvchan *, libxenvchan_client_init,                                        \
      (void *logger, int domain, const char *path))                                                \
    X(VCHAN, void, libxenvchan_close, (struct libxenvchan *))                                      \
    X(EVTCHN, void *, xenevtchn_open, (void *logger, unsigned flags))                              \
    X(EVTCHN, int, xenevtchn_close, (void *handle))                                                \
    X(EVTCHN, int, xenevtchn_fd, (void *handle))                                                   \
    X(EVTCHN, int, xenevtchn_bind_unbound_port, (void *handle, uint32_t domain))                   \
    X(EVTCHN, int, xenevtchn_notify, (void *handle, uint32_t port))                                \
    X(EVTCHN, int, xenevtchn_pending, (void *handle))                                              \
    X(EVTCHN, int, xenevtchn_unmask, (void *handle, uint32_t port))                                \
    X(GNTTAB, void *, xengntshr_open, (void *logger, unsigned flags))                              \
    X(GNTTAB, int, xengntshr_close, (void *handle))                                                \
    X(GNTTAB, void *, xengntshr_share_pages,                                                       \
      (void *handle, uint32_t domain, int count, uint32_t *references, int writable))              \
    X(GNTTAB, int, xengntshr_unshare, (void *handle, void *start, uint32_t count))                 \
    X(CALL, void *, xencall_open, (void *logger, unsigned flags))                                  \
    X(CALL, void *, xencall_alloc_buffer, (void *handle, size_t size))                             \
    X(CALL, int, xencall2, (void *handle, unsigned number, uint64_t first, uint64_t second))       \
    X(STORE, void *, xs_open, (unsigned long flags))                                               \
    X(STORE, void, xs_close, (void *handle))                                                       \
    X(STORE, char **, xs_directory,                                                                \
      (void *handle, uint32_t transaction, const char *path, unsigned *count))                     \
    X(STORE, void *, xs_read,                                                                      \
      (void *handle, uint32_t transaction, const char *path, unsigned *length))                    \
    X(STORE, bool, xs_write,                                                                       \
      (void *handle, uint32_t transaction, const char *path, const void *value, unsigned length))  \
    X(STORE, bool, xs_set_permissions,                                                             \
      (void *handle, uint32_t transaction, const char *path, struct xs_permissions *, unsigned))   \
    X(STORE, bool, xs_rm, (void *handle, uint32_t transaction, const char *path))                  \
    X(STORE, uint32_t, xs_transaction_start, (void *handle))                                       \
    X(STORE, bool, xs_transaction_end, (void *handle, uint32_t transaction, bool abort))           \
    X(STORE, bool, xs_watch, (void *handle, const char *path, const char *token))                  \
    X(STORE, bool, xs_unwatch, (void *handle, const char *path, const char *token))                \
    X(STORE, char **, xs_check_watch, (void *handle))                                              \
    X(STORE, int, xs_fileno, (void *handle))

/* The functions, by their own names; pv_xen_load() fills them in. */
struct xen_functions {
#define MEMBER(library, result, name, parameters) result(*name) parameters;
    XEN_FUNCTIONS(MEMBER)
#undef MEMBER
    bool has_path; /* whether struct libxenvchan has xs_path */
};

extern struct xen_functions xen __attribute__((visibility("hidden")));

#endif
