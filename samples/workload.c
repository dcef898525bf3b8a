/* A program of real size: sort, matrix product, CRC-32, a state machine. Each job is cut into a fixed number of parts; vCPU i does the parts with
   number = i modulo the number of vCPUs; vCPU 0 merges. So the text does not depend on how many there are. */
#include "port.h"

#define PARTS 8u
#define SORT_ITEMS 3000u          /* per part */
#define MATRIX 72u                /* rows and columns */
#define CRC_BYTES (24u * 1024u)   /* per part */
#define TEXT_BYTES (12u * 1024u)  /* per part */

struct tokens {
    unsigned words, numbers, comments, strings, errors;
};

static uint32_t *items[PARTS];
static uint32_t *matrix_a, *matrix_b, *matrix_c;
static uint8_t *bytes[PARTS];
static char *text[PARTS];
static uint32_t crc_table[256];
static uint32_t crcs[PARTS];
static struct tokens counts[PARTS];
static unsigned ready;

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static void sift(uint32_t *heap, unsigned root, unsigned end)
{
    uint32_t value = heap[root];
    for (unsigned child; (child = 2 * root + 1) < end; root = child) {
        if (child + 1 < end && heap[child] < heap[child + 1])
            child++;
        if (heap[child] <= value)
            break;
        heap[root] = heap[child];
    }
    heap[root] = value;
}

static void sort_part(unsigned part)
{
    uint32_t *array = items[part];
    uint64_t random = 0x9E3779B97F4A7C15ull * (part + 1);
    for (unsigned i = 0; i < SORT_ITEMS; i++)
        array[i] = (uint32_t)next_random(&random) % 1000000u;
    for (unsigned i = SORT_ITEMS / 2; i-- != 0;)
        sift(array, i, SORT_ITEMS);
    for (unsigned end = SORT_ITEMS - 1; end != 0; end--) {
        uint32_t largest = array[0];
        array[0] = array[end];
        array[end] = largest;
        sift(array, 0, end);
    }
}

static void merge_sorted(void)
{
    unsigned at[PARTS] = { 0 };
    uint32_t last = 0, sum = 0, middle = 0;
    int ascending = 1;
    for (unsigned n = 0; n < PARTS * SORT_ITEMS; n++) {
        unsigned best = PARTS;
        for (unsigned part = 0; part < PARTS; part++) {
            if (at[part] < SORT_ITEMS && (best == PARTS || items[part][at[part]] < items[best][at[best]]))
                best = part;
        }
        uint32_t value = items[best][at[best]++];
        ascending &= value >= last;
        last = value;
        sum = sum * 16777619u + value;
        if (n == PARTS * SORT_ITEMS / 2)
            middle = value;
    }
    check("sorted", ascending);
    put("  median ");
    put_decimal(middle);
    put(", largest ");
    put_decimal(last);
    put(", digest ");
    put_hex(sum, 8);
    put("\n");
}

static void fill_matrices(void)
{
    for (unsigned i = 0; i < MATRIX * MATRIX; i++) {
        matrix_a[i] = i * 7 + 3;
        matrix_b[i] = (i ^ (i >> 3)) + 1;
    }
}

static void multiply_part(unsigned part)
{
    for (unsigned row = part; row < MATRIX; row += PARTS) {
        for (unsigned column = 0; column < MATRIX; column++) {
            uint32_t sum = 0;
            for (unsigned i = 0; i < MATRIX; i++)
                sum += matrix_a[row * MATRIX + i] * matrix_b[i * MATRIX + column];
            matrix_c[row * MATRIX + column] = sum;
        }
    }
}

static void sum_matrix(void)
{
    uint32_t trace = 0, digest = 0;
    for (unsigned i = 0; i < MATRIX * MATRIX; i++)
        digest = digest * 31 + matrix_c[i];
    for (unsigned i = 0; i < MATRIX; i++)
        trace += matrix_c[i * MATRIX + i];
    put("matrix: trace ");
    put_hex(trace, 8);
    put(", digest ");
    put_hex(digest, 8);
    put("\n");
}

static void fill_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
        crc_table[i] = value;
    }
}

static uint32_t crc32(const uint8_t *data, size_t length)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < length; i++)
        crc = (crc >> 8) ^ crc_table[(crc ^ data[i]) & 255];
    return ~crc;
}

static void crc_part(unsigned part)
{
    uint64_t random = 0xD1B54A32D192ED03ull + part;
    for (unsigned i = 0; i < CRC_BYTES; i += 8) {
        uint64_t value = next_random(&random);
        for (unsigned byte = 0; byte < 8; byte++)
            bytes[part][i + byte] = (uint8_t)(value >> (8 * byte));
    }
    crcs[part] = crc32(bytes[part], CRC_BYTES);
}

static void merge_crcs(void)
{
    check("crc of \"123456789\" is cbf43926", crc32((const uint8_t *)"123456789", 9) == 0xCBF43926u);
    put("crc-32 of the parts:");
    for (unsigned part = 0; part < PARTS; part++) {
        put(" ");
        put_hex(crcs[part], 8);
    }
    put("\n");
}

static void machine_part(unsigned part)
{
    static const char alphabet[] = "abcxyz_0123456789 \n#\"'+ (){};12 ab ";
    uint64_t random = 0xA0761D6478BD642Full ^ part;
    for (unsigned i = 0; i < TEXT_BYTES; i++)
        text[part][i] = alphabet[(next_random(&random) >> 20) % (sizeof alphabet - 1)];

    enum { BETWEEN, WORD, NUMBER, COMMENT, STRING } state = BETWEEN;
    struct tokens *count = &counts[part];
    for (unsigned i = 0; i < TEXT_BYTES; i++) {
        char c = text[part][i];
        int letter = (c >= 'a' && c <= 'z') || c == '_', digit = c >= '0' && c <= '9';
        switch (state) {
        case WORD:
            if (letter || digit)
                continue;
            break;
        case NUMBER:
            if (digit)
                continue;
            count->errors += letter;
            break;
        case COMMENT:
            if (c != '\n')
                continue;
            state = BETWEEN;
            continue;
        case STRING:
            if (c != '"' && c != '\n')
                continue;
            count->errors += c == '\n';
            state = BETWEEN;
            continue;
        default:
            break;
        }
        state = BETWEEN;
        if (letter) {
            state = WORD;
            count->words++;
        } else if (digit) {
            state = NUMBER;
            count->numbers++;
        } else if (c == '#') {
            state = COMMENT;
            count->comments++;
        } else if (c == '"') {
            state = STRING;
            count->strings++;
        }
    }
}

static void show_count(const char *name, uint64_t value)
{
    put(name);
    put_decimal(value);
}

static void merge_tokens(void)
{
    struct tokens sum = { 0 };
    for (unsigned part = 0; part < PARTS; part++) {
        sum.words += counts[part].words;
        sum.numbers += counts[part].numbers;
        sum.comments += counts[part].comments;
        sum.strings += counts[part].strings;
        sum.errors += counts[part].errors;
    }
    show_count("state machine: words ", sum.words);
    show_count(", numbers ", sum.numbers);
    show_count(", comments ", sum.comments);
    show_count(", strings ", sum.strings);
    show_count(", errors ", sum.errors);
    put("\n");
}

static int allocate(void)
{
    int complete = 1;
    for (unsigned part = 0; part < PARTS; part++) {
        complete &= (items[part] = port_alloc(SORT_ITEMS * sizeof *items[part])) != NULL;
        complete &= (bytes[part] = port_alloc(CRC_BYTES)) != NULL;
        complete &= (text[part] = port_alloc(TEXT_BYTES)) != NULL;
    }
    complete &= (matrix_a = port_alloc(MATRIX * MATRIX * sizeof *matrix_a)) != NULL;
    complete &= (matrix_b = port_alloc(MATRIX * MATRIX * sizeof *matrix_b)) != NULL;
    complete &= (matrix_c = port_alloc(MATRIX * MATRIX * sizeof *matrix_c)) != NULL;
    return complete;
}

int guest_main(unsigned vcpu, unsigned vcpus)
{
    if (vcpu == 0) {
        ready = allocate();
        check("memory allocated", ready);
        if (ready) {
            fill_matrices();
            fill_crc_table();
        }
    }
    port_barrier(0, vcpus);
    if (!ready)
        return 1;
    for (unsigned part = vcpu; part < PARTS; part += vcpus) {
        sort_part(part);
        multiply_part(part);
        crc_part(part);
        machine_part(part);
    }
    port_barrier(1, vcpus);
    if (vcpu != 0)
        return 0;
    merge_sorted();
    sum_matrix();
    merge_crcs();
    merge_tokens();
    port_report("parts", PARTS);
    return failures();
}
