/* Calls of the engine for core.py: it reads frames from stdin and answers each on stdout, a length in four bytes first.
 *
 * C: a call (call.h). W: wipe the engine. S: in how many places of libcrypto's memory, the engine included, these bytes
 * stand. N: make new engines, of which the first misses its first allocation, the next its second, and so on until one
 * is made; how many were not. All allocations of libcrypto go through what is here.
 */
#define _GNU_SOURCE /* memmem */
#include "call.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PLACES = 1 << 16, MAX_FRAME = 1 << 18 };

static struct {
    uint8_t *at;
    size_t size;
} places[PLACES];
static size_t used;
static long until_failure = -1; /* allocations that succeed yet; below 0: all */

static void broken(const char *what) {
    fprintf(stderr, "driver: %s\n", what);
    abort();
}

static void *keep(void *at, size_t size) {
    if (!at) return NULL;
    if (used == PLACES) broken("too many allocations");
    places[used].at = at;
    places[used++].size = size;
    return at;
}

static size_t forget(void *at) {
    for (size_t i = used; i-- > 0;) {
        if (places[i].at != at) continue;
        size_t size = places[i].size;
        places[i] = places[--used];
        return size;
    }
    broken("memory is freed that was not allocated");
    return 0;
}

static void *allocated(size_t size, const char *file, int line) {
    (void)file, (void)line;
    if (!until_failure) return NULL;
    if (until_failure > 0) until_failure--;
    return size ? keep(malloc(size), size) : NULL;
}

static void freed(void *at, const char *file, int line) {
    (void)file, (void)line;
    if (at) forget(at);
    free(at);
}

static void *reallocated(void *at, size_t size, const char *file, int line) {
    void *made = allocated(size, file, line);
    size_t before = at ? forget(at) : 0;
    if (made && before) memcpy(made, at, before < size ? before : size);
    free(at);
    return made;
}

static uint32_t missed(void) {
    for (uint32_t count = 0;; count++) {
        size_t before = used;
        until_failure = count;
        engine *e = engine_new();
        until_failure = -1;
        engine_free(e);
        if (e) return count;
        if (count && used != before) broken("an engine that was not made keeps memory");
    }
}

static uint32_t found(const uint8_t *what, size_t length) {
    uint32_t count = 0;
    for (size_t i = 0; i < used; i++) {
        const uint8_t *at = places[i].at, *end = at + places[i].size;
        while ((at = memmem(at, (size_t)(end - at), what, length))) at++, count++;
    }
    return count;
}

static void big_endian(size_t value, uint8_t out[4]) {
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(value >> (24 - 8 * i));
}

int main(void) {
    static uint8_t frame[MAX_FRAME], answer[MAX_ANSWER], head[4];
    if (!CRYPTO_set_mem_functions(allocated, reallocated, freed)) broken("libcrypto has allocated before");
    engine *e = engine_new();
    if (!e) broken("no engine");
    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        size_t length = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3], answered = 0;
        if (!length || length > sizeof frame || fread(frame, 1, length, stdin) != length) broken("a bad frame");
        uint8_t *given = malloc(length - 1); /* of its own, so that reading behind it is seen */
        memcpy(given, frame + 1, length - 1);
        if (frame[0] == 'C') {
            answered = call(e, given, length - 1, answer);
        } else if (frame[0] == 'W') {
            engine_wipe(e);
        } else if (frame[0] == 'S') {
            big_endian(found(given, length - 1), answer);
            answered = 4;
        } else if (frame[0] == 'N') {
            big_endian(missed(), answer);
            answered = 4;
        } else {
            broken("no such frame");
        }
        free(given);
        big_endian(answered, head);
        fwrite(head, 1, sizeof head, stdout);
        fwrite(answer, 1, answered, stdout);
        fflush(stdout);
    }
    engine_free(e);
    return 0;
}
