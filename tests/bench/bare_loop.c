/* What the engine is measured against: the same cryptography written down plainly with OpenSSL, one SIM after the other,
 * and nothing around it. Per script: the card's pseudo-random challenge, S-ENC, S-MAC and S-RMAC, the host cryptogram,
 * EXTERNAL AUTHENTICATE and STORE DATA until the payload has gone (S8, level 03, AES-128). Contexts are made once; CMAC
 * is CBC with its last block masked (RFC 4493, 2.4), set back to IV 0 for each message.
 *
 * Reads lines, answers each with one:
 *   script K_ENC K_MAC HOST_CHALLENGE COUNTER AID PAYLOAD   (hex)   the APDUs of one script, joined, in hex
 *   run SECONDS             scripts, seconds and CPU seconds that they took, CPU seconds per script of the best batch
 */
#define _POSIX_C_SOURCE 200809L
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    BLOCK = 16,
    CAPACITY = 239,    /* plaintext bytes in one STORE DATA */
    MAC = 8,           /* length of MACs, challenges and cryptograms in S8 */
    COUNTER = 3,
    MIN_AID = 5,
    MAX_AID = 16,
    MAX_BLOCKS = 256,
    MAX_PAYLOAD = MAX_BLOCKS * CAPACITY,
    MAX_APDU = 5 + 240 + MAC,
    MAX_SCRIPT = 5 + 2 * MAC + MAX_BLOCKS * MAX_APDU,
    SIMS = 512,        /* of a batch */
    BENCH_AID = 10,
    BENCH_PAYLOAD = 2480,
};

typedef struct {
    uint8_t k_enc[BLOCK], k_mac[BLOCK], host[MAC], counter[COUNTER], aid[MAX_AID];
    size_t aid_length;
} sim;

static const uint8_t ZERO[BLOCK];
static EVP_CIPHER_CTX *cmac_context, *cbc_context, *ecb_context;
static uint8_t k1[BLOCK], k2[BLOCK]; /* CMAC's subkeys under the key of the moment */

static void must(int good) {
    if (good) return;
    fputs("bare_loop: OpenSSL failed\n", stderr);
    exit(2);
}

static EVP_CIPHER_CTX *context(const char *name) {
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, name, NULL);
    EVP_CIPHER_CTX *made = EVP_CIPHER_CTX_new();
    must(cipher && made && EVP_EncryptInit_ex(made, cipher, NULL, ZERO, ZERO) && EVP_CIPHER_CTX_set_padding(made, 0));
    EVP_CIPHER_free(cipher);
    return made;
}

static void start(EVP_CIPHER_CTX *c, const uint8_t *key, const uint8_t *iv) {
    must(EVP_EncryptInit_ex(c, NULL, NULL, key, iv));
}

static void encrypt(EVP_CIPHER_CTX *c, uint8_t *out, const uint8_t *in, size_t length) {
    int written;
    must(EVP_EncryptUpdate(c, out, &written, in, (int)length));
}

static void shift(uint8_t *out, const uint8_t *in) {
    for (int i = 0; i < BLOCK; i++) out[i] = (uint8_t)(in[i] << 1 | (i + 1 < BLOCK ? in[i + 1] >> 7 : 0));
    if (in[0] & 0x80) out[BLOCK - 1] ^= 0x87;
}

static void use_mac_key(const uint8_t *key) {
    uint8_t l[BLOCK];
    start(cmac_context, key, ZERO);
    encrypt(cmac_context, l, ZERO, BLOCK);
    shift(k1, l);
    shift(k2, k1);
}

/* CMAC of two pieces, the first of whole blocks. */
static void cmac(uint8_t *mac, const uint8_t *first, size_t first_length, const uint8_t *rest, size_t length) {
    uint8_t message[BLOCK + MAX_APDU + BLOCK], out[sizeof message];
    memcpy(message, first, first_length);
    memcpy(message + first_length, rest, length);
    length += first_length;
    const uint8_t *mask = k1;
    if (length % BLOCK) {
        message[length++] = 0x80;
        while (length % BLOCK) message[length++] = 0;
        mask = k2;
    }
    for (int i = 0; i < BLOCK; i++) message[length - BLOCK + i] ^= mask[i];
    start(cmac_context, NULL, ZERO);
    encrypt(cmac_context, out, message, length);
    memcpy(mac, out + length - BLOCK, BLOCK);
}

/* One block of SCP03's derivation (GPC Amendment D, 4.1.5). */
static void derive(uint8_t *out, uint8_t constant, uint8_t bits, const uint8_t *context, size_t length) {
    uint8_t label[BLOCK] = {[11] = constant, [14] = bits, [15] = 1};
    cmac(out, label, BLOCK, context, length);
}

static size_t script(const sim *s, const uint8_t *payload, size_t length, uint8_t *out) {
    static uint8_t counters[MAX_BLOCKS * BLOCK], icvs[MAX_BLOCKS * BLOCK];
    uint8_t opening[COUNTER + MAX_AID], challenges[2 * MAC], derived[BLOCK], s_enc[BLOCK], s_mac[BLOCK], s_rmac[BLOCK];
    uint8_t chain[BLOCK] = {0}, *o = out;

    memcpy(opening, s->counter, COUNTER);
    memcpy(opening + COUNTER, s->aid, s->aid_length);
    use_mac_key(s->k_enc);
    derive(derived, 0x02, 8 * MAC, opening, COUNTER + s->aid_length);
    memcpy(challenges, s->host, MAC);
    memcpy(challenges + MAC, derived, MAC);
    derive(s_enc, 0x04, 8 * BLOCK, challenges, sizeof challenges);
    use_mac_key(s->k_mac);
    derive(s_mac, 0x06, 8 * BLOCK, challenges, sizeof challenges);
    derive(s_rmac, 0x07, 8 * BLOCK, challenges, sizeof challenges);
    use_mac_key(s_mac);
    derive(derived, 0x01, 8 * MAC, challenges, sizeof challenges);

    memcpy(o, "\x84\x82\x03\x00\x10", 5);
    memcpy(o + 5, derived, MAC);
    cmac(chain, chain, BLOCK, o, 5 + MAC);
    memcpy(o + 5 + MAC, chain, MAC);
    o += 5 + 2 * MAC;

    size_t blocks = (length + CAPACITY - 1) / CAPACITY;
    for (size_t i = 0; i < blocks; i++) {
        counters[BLOCK * i + 14] = (uint8_t)((i + 1) >> 8);
        counters[BLOCK * i + 15] = (uint8_t)(i + 1);
    }
    start(ecb_context, s_enc, NULL);
    encrypt(ecb_context, icvs, counters, BLOCK * blocks);
    start(cbc_context, s_enc, ZERO);
    for (size_t i = 0; i < blocks; i++) {
        uint8_t plain[CAPACITY + 1];
        size_t part = length < CAPACITY ? length : CAPACITY, padded = part / BLOCK * BLOCK + BLOCK;
        memcpy(plain, payload, part);
        plain[part] = 0x80;
        memset(plain + part + 1, 0, padded - part - 1);
        payload += part;
        length -= part;
        memcpy(o, (uint8_t[]){0x84, 0xE2, length ? 0x30 : 0xB0, (uint8_t)i, (uint8_t)(padded + MAC)}, 5);
        start(cbc_context, NULL, icvs + BLOCK * i);
        encrypt(cbc_context, o + 5, plain, padded);
        cmac(chain, chain, BLOCK, o, 5 + padded);
        memcpy(o + 5 + padded, chain, MAC);
        o += 5 + padded + MAC;
    }
    return (size_t)(o - out);
}

static uint8_t result[MAX_SCRIPT];

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void run(const sim *sims, const uint8_t *payload, double limit) {
    double began = seconds(CLOCK_MONOTONIC), cpu_began = seconds(CLOCK_PROCESS_CPUTIME_ID), best = 1e9;
    double wall, cpu = cpu_began;
    long done = 0;
    do {
        double batch = cpu;
        for (int i = 0; i < SIMS; i++) script(&sims[i], payload, BENCH_PAYLOAD, result);
        done += SIMS;
        cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
        wall = seconds(CLOCK_MONOTONIC) - began;
        if (cpu - batch < best) best = cpu - batch;
    } while (wall < limit);
    printf("%ld %.9f %.9f %.9f\n", done, wall, cpu - cpu_began, best / SIMS);
}

/* Bytes of a word in hex; -1 where it is none, or longer than there is room. */
static long from_hex(const char *word, uint8_t *out, size_t room) {
    size_t length = word ? strlen(word) / 2 : 0;
    if (!word || strlen(word) % 2 || length > room || strspn(word, "0123456789abcdefABCDEF") != 2 * length) return -1;
    for (size_t i = 0; i < length; i++) out[i] = (uint8_t)strtoul((char[]){word[2 * i], word[2 * i + 1], 0}, NULL, 16);
    return (long)length;
}

static void one(void) {
    static uint8_t payload[MAX_PAYLOAD];
    sim s;
    const char *space = " \n";
    long enc = from_hex(strtok(NULL, space), s.k_enc, BLOCK), mac = from_hex(strtok(NULL, space), s.k_mac, BLOCK);
    long host = from_hex(strtok(NULL, space), s.host, MAC), counter = from_hex(strtok(NULL, space), s.counter, COUNTER);
    long aid = from_hex(strtok(NULL, space), s.aid, MAX_AID), length = from_hex(strtok(NULL, space), payload, MAX_PAYLOAD);
    if (enc != BLOCK || mac != BLOCK || host != MAC || counter != COUNTER || aid < MIN_AID || length < 1) {
        fputs("bare_loop: script K_ENC K_MAC HOST_CHALLENGE COUNTER AID PAYLOAD\n", stderr);
        exit(64);
    }
    s.aid_length = (size_t)aid;
    size_t made = script(&s, payload, (size_t)length, result);
    for (size_t i = 0; i < made; i++) printf("%02x", result[i]);
    putchar('\n');
}

int main(void) {
    static sim sims[SIMS];
    static uint8_t payload[BENCH_PAYLOAD];
    char *line = NULL;
    size_t size = 0;
    cmac_context = context("AES-128-CBC");
    cbc_context = context("AES-128-CBC");
    ecb_context = context("AES-128-ECB");
    for (size_t i = 0; i < sizeof sims; i++) ((uint8_t *)sims)[i] = (uint8_t)rand();
    for (size_t i = 0; i < sizeof payload; i++) payload[i] = (uint8_t)rand();
    for (size_t i = 0; i < SIMS; i++) sims[i].aid_length = BENCH_AID;
    while (getline(&line, &size, stdin) > 0) {
        const char *verb = strtok(line, " \n");
        if (verb && !strcmp(verb, "script")) {
            one();
        } else if (verb && !strcmp(verb, "run")) {
            const char *limit = strtok(NULL, " \n");
            run(sims, payload, limit ? atof(limit) : 1);
        } else {
            fputs("bare_loop: script ... or run SECONDS\n", stderr);
            return 64;
        }
        fflush(stdout);
    }
    free(line);
    return 0;
}
