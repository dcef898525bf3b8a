/* Port for guests of boot protocol TDG1: services of the guest kernel by INT 0x80, the console port by OUT, the test device by single MOVs. */
#include "port.h"

struct boot_info {
    uint32_t magic, size;
    uint64_t flags, shared_mask, ram_top, accepted_top;
    uint32_t vcpus, tsc_khz;
    uint64_t console_port, exit_port, mmio_base, command_line, payload_entry, ap_entry, ap_mailbox, shared_test_page, seed;
};

enum service { SERVICE_WRITE = 1, SERVICE_RDTSC, SERVICE_ALLOC, SERVICE_ACCEPT, SERVICE_SHARE, SERVICE_UNSHARE, SERVICE_BARRIER, SERVICE_REPORT };

#define SHARED_WINDOW 0x4000000000ull
#define FLAG_TRUST_DOMAIN 1

/* Every vCPU stores the same value. */
static const struct boot_info *boot;

static long service(enum service number, uint64_t first, uint64_t second)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"((uint64_t)number), "D"(first), "S"(second) : "memory", "cc");
    return result;
}

int port_start(const struct boot_info *info, unsigned vcpu)
{
    boot = info;
    return guest_main(vcpu, info->vcpus);
}

int port_is_trust_domain(void)
{
    return (boot->flags & FLAG_TRUST_DOMAIN) != 0;
}

void port_write(const char *text, size_t bytes)
{
    service(SERVICE_WRITE, (uintptr_t)text, bytes);
}

void port_console_byte(char byte)
{
    __asm__ volatile("outb %0, %1" : : "a"(byte), "d"((uint16_t)boot->console_port));
}

void *port_alloc(size_t bytes)
{
    long address = service(SERVICE_ALLOC, bytes, 0);
    return address < 0 ? NULL : (void *)address;
}

uint64_t port_ticks(void)
{
    return (uint64_t)service(SERVICE_RDTSC, 0, 0);
}

long port_accept(void *page, size_t bytes)
{
    return service(SERVICE_ACCEPT, (uintptr_t)page, bytes);
}

long port_share(void *page, size_t pages)
{
    return service(SERVICE_SHARE, (uintptr_t)page, pages);
}

long port_unshare(void *page, size_t pages)
{
    return service(SERVICE_UNSHARE, (uintptr_t)page, pages);
}

void *port_shared_alias(void *page)
{
    return (void *)((uintptr_t)page + SHARED_WINDOW);
}

void port_barrier(unsigned id, unsigned vcpus)
{
    service(SERVICE_BARRIER, id, vcpus);
}

void port_report(const char *key, uint64_t value)
{
    service(SERVICE_REPORT, (uintptr_t)key, value);
}

void port_probe_cpuid(void)
{
    uint32_t a = 0xB, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
}

/* Not inlined, so that the one memory access of each can be found and checked in the binary. */
#define MMIO_ACCESS(bits, suffix, constraint)                                                                                  \
    __attribute__((noinline)) uint##bits##_t mmio_read##bits(unsigned offset)                                                  \
    {                                                                                                                          \
        uint##bits##_t value;                                                                                                  \
        __asm__ volatile("mov" suffix " (%1), %0" : "=" constraint(value) : "r"(SHARED_WINDOW + 0xF0000000ull + offset) : "memory"); \
        return value;                                                                                                          \
    }                                                                                                                          \
    __attribute__((noinline)) void mmio_write##bits(unsigned offset, uint##bits##_t value)                                     \
    {                                                                                                                          \
        __asm__ volatile("mov" suffix " %0, (%1)" : : constraint(value), "r"(SHARED_WINDOW + 0xF0000000ull + offset) : "memory"); \
    }

MMIO_ACCESS(8, "b", "q")
MMIO_ACCESS(16, "w", "r")
MMIO_ACCESS(32, "l", "r")
MMIO_ACCESS(64, "q", "r")

/* The compiler may call these even in freestanding mode. In assembly, or it might turn each into a call of itself. */
void *memcpy(void *to, const void *from, size_t bytes)
{
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(bytes) : : "memory");
    return to;
}

void *memset(void *to, int value, size_t bytes)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(value) : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t bytes)
{
    if ((uintptr_t)to - (uintptr_t)from >= bytes)
        return memcpy(to, from, bytes);
    char *target = (char *)to + bytes - 1;
    const char *source = (const char *)from + bytes - 1;
    __asm__ volatile("std\n\trep movsb\n\tcld" : "+D"(target), "+S"(source), "+c"(bytes) : : "memory");
    return to;
}

int memcmp(const void *left, const void *right, size_t bytes)
{
    const unsigned char *a = left, *b = right;
    for (; bytes != 0; bytes--, a++, b++) {
        if (*a != *b)
            return *a < *b ? -1 : 1;
    }
    return 0;
}
