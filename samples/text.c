/* Console text without a C library. */
#include "port.h"

static int wrong;

void put(const char *text)
{
    size_t bytes = 0;
    while (text[bytes] != 0)
        bytes++;
    port_write(text, bytes);
}

void put_decimal(uint64_t value)
{
    char digits[20];
    unsigned at = sizeof digits;
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    port_write(digits + at, sizeof digits - at);
}

void put_hex(uint64_t value, unsigned count)
{
    char digits[16];
    for (unsigned i = 0; i < count; i++)
        digits[i] = "0123456789abcdef"[(value >> (4 * (count - 1 - i))) & 15];
    port_write(digits, count);
}

void check(const char *name, int holds)
{
    put(name);
    put(holds ? ": ok\n" : ": WRONG\n");
    wrong += !holds;
}

int failures(void)
{
    return wrong;
}
