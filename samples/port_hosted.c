/* Port for an ordinary process with one "vCPU": it gives the reference output. There is one alias only, so conversions change nothing. */
#define _GNU_SOURCE
#include "port.h"

#include <cpuid.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static uint64_t device = 0x1122334455667788ull;

int main(void)
{
    return guest_main(0, 1);
}

int port_is_trust_domain(void)
{
    return 0;
}

void port_write(const char *text, size_t bytes)
{
    fwrite(text, 1, bytes, stdout);
}

void port_console_byte(char byte)
{
    putchar(byte);
}

void *port_alloc(size_t bytes)
{
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

uint64_t port_ticks(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

long port_accept(void *page, size_t bytes)
{
    (void)page;
    (void)bytes;
    return 0;
}

long port_share(void *page, size_t pages)
{
    (void)page;
    (void)pages;
    return 0;
}

long port_unshare(void *page, size_t pages)
{
    (void)page;
    (void)pages;
    return 0;
}

void *port_shared_alias(void *page)
{
    return page;
}

void port_barrier(unsigned id, unsigned vcpus)
{
    (void)id;
    (void)vcpus;
}

void port_report(const char *key, uint64_t value)
{
    printf("report %s = %llu\n", key, (unsigned long long)value);
}

void port_probe_cpuid(void)
{
    unsigned a, b, c, d;
    __cpuid_count(0xB, 0, a, b, c, d);
}

#define MMIO_ACCESS(bits)                                                                                                      \
    uint##bits##_t mmio_read##bits(unsigned offset)                                                                            \
    {                                                                                                                          \
        uint##bits##_t value;                                                                                                  \
        memcpy(&value, (char *)&device + offset, sizeof value);                                                                \
        return value;                                                                                                          \
    }                                                                                                                          \
    void mmio_write##bits(unsigned offset, uint##bits##_t value)                                                               \
    {                                                                                                                          \
        memcpy((char *)&device + offset, &value, sizeof value);                                                                \
    }

MMIO_ACCESS(8)
MMIO_ACCESS(16)
MMIO_ACCESS(32)
MMIO_ACCESS(64)
