/* Private -> shared -> private of pages in use, through both aliases. In a trust domain the content is lost at each conversion, and only there:
   the neighbours keep theirs. Where there is no difference between private and shared, nothing is lost. */
#include "port.h"

#define WORDS (PAGE_BYTES / 8)
#define WIDE_PAGES 520u /* more than the 2 MiB that one step of MapGPA converts */

static uint64_t pattern(unsigned page, unsigned word, unsigned round)
{
    return ((uint64_t)(page + 1) << 48) ^ ((uint64_t)round << 32) ^ (word * 0x01000193u) ^ 0x5A5A5A5A5A5A5A5Aull;
}

static void fill(volatile uint64_t *page, unsigned number, unsigned round)
{
    for (unsigned i = 0; i < WORDS; i++)
        page[i] = pattern(number, i, round);
}

static unsigned matching(volatile uint64_t *page, unsigned number, unsigned round)
{
    unsigned count = 0;
    for (unsigned i = 0; i < WORDS; i++)
        count += page[i] == pattern(number, i, round);
    return count;
}

static unsigned zeros(volatile uint64_t *page)
{
    unsigned count = 0;
    for (unsigned i = 0; i < WORDS; i++)
        count += page[i] == 0;
    return count;
}

static void one_page_round_trip(int trust_domain)
{
    uint64_t *pages = port_alloc(3 * PAGE_BYTES);
    check("three pages allocated", pages != NULL);
    if (pages == NULL)
        return;
    uint64_t *left = pages, *middle = pages + WORDS, *right = pages + 2 * WORDS;
    uint64_t *alias = port_shared_alias(middle);
    fill(left, 0, 1);
    fill(middle, 1, 1);
    fill(right, 2, 1);
    check("the pattern is there while the page is private", matching(middle, 1, 1) == WORDS);

    check("the middle page becomes shared", port_share(middle, 1) == 0);
    unsigned kept = matching(middle, 1, 1);
    if (trust_domain) {
        put("td: words of the old content after private -> shared: ");
        put_decimal(kept);
        put("\n");
    }
    check("private -> shared: content as the architecture says", trust_domain ? kept == 0 : kept == WORDS);
    fill(middle, 1, 2);
    check("what the page gets, its shared alias shows", matching(alias, 1, 2) == WORDS);
    fill(alias, 1, 3);
    check("what the alias gets, the page shows", matching(middle, 1, 3) == WORDS);
    check("the neighbours keep their content", matching(left, 0, 1) == WORDS && matching(right, 2, 1) == WORDS);

    check("the middle page becomes private", port_unshare(middle, 1) == 0);
    kept = matching(middle, 1, 3);
    if (trust_domain) {
        put("td: words of the shared content after shared -> private: ");
        put_decimal(kept);
        put(", zero words: ");
        put_decimal(zeros(middle));
        put("\n");
    }
    check("shared -> private: content as the architecture says", trust_domain ? zeros(middle) == WORDS : kept == WORDS);
    fill(middle, 1, 4);
    check("the page is ordinary private memory again", matching(middle, 1, 4) == WORDS);
    check("the neighbours keep their content", matching(left, 0, 1) == WORDS && matching(right, 2, 1) == WORDS);
}

static void wide_round_trip(int trust_domain)
{
    char *range = port_alloc(WIDE_PAGES * (size_t)PAGE_BYTES);
    check("a wide range allocated", range != NULL);
    if (range == NULL)
        return;
    for (unsigned i = 0; i < WIDE_PAGES; i += 13)
        *(uint64_t *)(range + i * (size_t)PAGE_BYTES) = pattern(i, 0, 5);
    check("the range becomes shared", port_share(range, WIDE_PAGES) == 0);
    for (unsigned i = 0; i < WIDE_PAGES; i += 13)
        *(uint64_t *)(range + i * (size_t)PAGE_BYTES) = pattern(i, 0, 6);
    unsigned through_alias = 0, touched = 0;
    for (unsigned i = 0; i < WIDE_PAGES; i += 13, touched++)
        through_alias += *(uint64_t *)port_shared_alias(range + i * (size_t)PAGE_BYTES) == pattern(i, 0, 6);
    check("all its pages agree with their aliases", through_alias == touched);
    check("the range becomes private", port_unshare(range, WIDE_PAGES) == 0);
    unsigned zero = 0, old = 0;
    for (unsigned i = 0; i < WIDE_PAGES; i += 13) {
        uint64_t word = *(uint64_t *)(range + i * (size_t)PAGE_BYTES);
        zero += word == 0;
        old += word == pattern(i, 0, 6);
    }
    check("the range: content as the architecture says", trust_domain ? zero == touched : old == touched);
}

static void refusals(int trust_domain)
{
    char *pages = port_alloc(2 * PAGE_BYTES);
    if (!trust_domain || pages == NULL)
        return;
    put("td: converting to what a page is already, or half a page: ");
    int refused = port_unshare(pages, 1) < 0 && port_share(pages + 8, 1) < 0 && port_share(pages, 0) < 0;
    put(refused ? "refused\n" : "NOT refused\n");
}

int guest_main(unsigned vcpu, unsigned vcpus)
{
    if (vcpu == 0) {
        int trust_domain = port_is_trust_domain();
        one_page_round_trip(trust_domain);
        wide_round_trip(trust_domain);
        refusals(trust_domain);
        port_report("pages converted and back", 1 + WIDE_PAGES);
    }
    /* The other vCPUs wait here; they answer the TLB shoot-downs meanwhile. */
    port_barrier(1, vcpus);
    return vcpu == 0 ? failures() : 0;
}
