/*
 * The check of a USB/IP stream (Linux, Documentation/usb/usbip_protocol.rst, the part after an
 * import): commands go to usbip-host in the source, returns to vhci-hcd in the target.
 *
 * Both kernels believe much of what the other end says. So every header and every table of
 * isochronous packets has to fit what it says of itself, what was asked for, and the bounds below:
 *  - each length is within the transfer that it is a part of, and each packet within its buffer;
 *  - a return answers an outstanding command, with no more bytes and as many packets as that had;
 *  - a transfer that has ended just before it was unlinked returns to no command any more: that
 *    return is taken out, because vhci-hcd would end the connection;
 *  - flags that tell the source's kernel where a buffer is, or to free it, are cleared;
 *  - no data or table begins as a command: usbip-host drops a command for an endpoint that the
 *    device does not have just now, or takes a table for none, and would read on right there.
 */
#ifndef PEDOS_USBIP_H
#define PEDOS_USBIP_H

#include "check.h"

/* One transfer: usbfs lets all programs together have this much by default. */
#define PV_USBIP_TRANSFER_MAX (16u << 20)
/* All outstanding ones of an attachment, which the source's kernel holds. */
#define PV_USBIP_BYTES_MAX (64u << 20)
/* Commands without a return: network adapters have some sixty, cameras and disks fewer. */
#define PV_USBIP_COMMANDS_MAX 1024u
/* Transfers that may return after their unlinking did: those that ended while usbip-host sent. */
#define PV_USBIP_LATE_MAX 64u
/* Of one isochronous transfer, as vhci-hcd and usbfs have it at most. */
#define PV_USBIP_PACKETS_MAX 1024u

/*
 * For the device that the source's kernel calls devid. is_source: commands come from the ring, else
 * returns do. NULL: no memory.
 */
struct pv_check *pv_usbip_new(uint32_t devid, int is_source);

void pv_usbip_free(struct pv_check *check);

/* The two directions themselves; see check.h. */
int64_t pv_usbip_commands(struct pv_check *check, uint8_t *bytes, size_t count);
int64_t pv_usbip_returns(struct pv_check *check, uint8_t *bytes, size_t count);

/* How many commands have no return yet. */
unsigned pv_usbip_outstanding(const struct pv_check *check);

/* How many bytes the last look took out. */
size_t pv_usbip_dropped(const struct pv_check *check);

/* Why the check refused; "" if it did not. */
const char *pv_usbip_why(const struct pv_check *check);

#endif
