/* What a sample may ask of the machine below it. Two ports: port_tdg1.c (a guest of boot protocol TDG1) and port_hosted.c (an ordinary process, for
   the reference output). A sample includes nothing else. */
#ifndef PORT_H
#define PORT_H

#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096u

/* The sample. Called once per vCPU; what vCPU 0 returns is the exit code, the others stop when they return. */
int guest_main(unsigned vcpu, unsigned vcpus);

/* True where a conversion between private and shared destroys the content of a page: in a trust domain. */
int port_is_trust_domain(void);

void port_write(const char *text, size_t bytes);

/* One byte by the console port itself, not by the kernel's service. */
void port_console_byte(char byte);

/* Zeroed whole pages, never given back; NULL if there are none left. */
void *port_alloc(size_t bytes);

uint64_t port_ticks(void);

/* 0, or a negative error. */
long port_accept(void *page, size_t bytes);
long port_share(void *page, size_t pages);
long port_unshare(void *page, size_t pages);

/* The same bytes by their shared alias; meaningful only while the page is shared (or where there is no difference). */
void *port_shared_alias(void *page);

/* Waits until so many vCPUs are at the barrier with that number (0 to 15). */
void port_barrier(unsigned id, unsigned vcpus);

/* One line: report KEY = VALUE. */
void port_report(const char *key, uint64_t value);

/* A CPUID leaf that a trust domain does not answer by itself. */
void port_probe_cpuid(void);

/* The test device: eight bytes that behave like memory and start as 0x1122334455667788. Each accessor is one MOV. */
uint8_t mmio_read8(unsigned offset);
uint16_t mmio_read16(unsigned offset);
uint32_t mmio_read32(unsigned offset);
uint64_t mmio_read64(unsigned offset);
void mmio_write8(unsigned offset, uint8_t value);
void mmio_write16(unsigned offset, uint16_t value);
void mmio_write32(unsigned offset, uint32_t value);
void mmio_write64(unsigned offset, uint64_t value);

/* text.c */
void put(const char *text);
void put_decimal(uint64_t value);
void put_hex(uint64_t value, unsigned digits);

/* Prints "NAME: ok" or "NAME: WRONG" and counts the latter. */
void check(const char *name, int holds);
int failures(void);

#endif
