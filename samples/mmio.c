/* The test device, by every access size. In a trust domain each access is a #VE that the guest kernel emulates; in an ordinary VM the host does. */
#include "port.h"

static void show(const char *name, uint64_t value, unsigned digits)
{
    put(name);
    put(" = 0x");
    put_hex(value, digits);
    put("\n");
}

int guest_main(unsigned vcpu, unsigned vcpus)
{
    (void)vcpus;
    if (vcpu != 0)
        return 0;
    show("scratch at start", mmio_read64(0), 16);
    show("low 32 bits", mmio_read32(0), 8);
    show("high 32 bits", mmio_read32(4), 8);
    show("16 bits at 2", mmio_read16(2), 4);
    show("8 bits at 7", mmio_read8(7), 2);

    mmio_write64(0, 0xFEDCBA9876543210ull);
    show("after a 64-bit write", mmio_read64(0), 16);
    mmio_write32(4, 0xCAFEF00D);
    show("after a 32-bit write at 4", mmio_read64(0), 16);
    mmio_write16(2, 0xBEEF);
    show("after a 16-bit write at 2", mmio_read64(0), 16);
    mmio_write8(1, 0x5A);
    show("after an 8-bit write at 1", mmio_read64(0), 16);

    uint64_t sum = 0;
    for (unsigned i = 0; i < 100; i++) {
        mmio_write32(0, i * i);
        sum += mmio_read32(0);
    }
    put("sum over 100 writes and reads: ");
    put_decimal(sum);
    put("\n");
    port_report("accesses", 213);
    return failures();
}
