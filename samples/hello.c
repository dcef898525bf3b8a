/* The smallest guest that uses everything a guest needs: console, memory, time, CPUID, all vCPUs. */
#include "port.h"

#define PAGES 24u

static unsigned arrived;

int guest_main(unsigned vcpu, unsigned vcpus)
{
    __atomic_fetch_add(&arrived, 1, __ATOMIC_SEQ_CST);
    port_barrier(0, vcpus);
    if (vcpu != 0)
        return 0;

    put("hello from a guest\n");
    for (const char *text = "written byte by byte through the console port\n"; *text != 0; text++)
        port_console_byte(*text);
    check("all vCPUs are here", arrived == vcpus);

    uint64_t *memory = port_alloc(PAGES * PAGE_BYTES);
    check("memory allocated", memory != NULL);
    if (memory == NULL)
        return 1;
    uint64_t sum = 0;
    for (unsigned i = 0; i < PAGES * PAGE_BYTES / 8; i++)
        sum |= memory[i];
    check("fresh memory is zero", sum == 0);
    for (unsigned i = 0; i < PAGES * PAGE_BYTES / 8; i++)
        memory[i] = (i * 0x9E3779B97F4A7C15ull) ^ i;
    for (unsigned i = 0; i < PAGES * PAGE_BYTES / 8; i++)
        sum = sum * 31 + memory[i];
    put("checksum of ");
    put_decimal(PAGES);
    put(" pages: ");
    put_hex(sum, 16);
    put("\n");

    port_probe_cpuid();
    put("cpuid answered\n");
    uint64_t before = port_ticks();
    check("time does not run backwards", port_ticks() >= before);
    port_report("pages touched", PAGES);
    return failures();
}
