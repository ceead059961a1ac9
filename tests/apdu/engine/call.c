/* See call.h. Every argument and every result has a block of memory of its own, of its exact size, so that the address
 * sanitizer sees a byte too many. Each call is made twice, with the engine wiped and the results' memory filled
 * otherwise, so that a byte that was not written, or depends on what was before, shows.
 */
#include "call.h"

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BLOCKS_TAKEN = 1200, R_MAC = 0x10, R_ENC = 0x20 };

enum { RENDER, CARD_CHALLENGE, SESSION_KEYS, CARD_CRYPTOGRAM, SESSION, KDF3, KCV, KINDS };
enum { STATIC = 0x01, FROM_COUNTER = 0x02 };         /* of an order */
enum { AS_IT_IS, NONE, SEALED, SPOILT, RESPONSES };  /* of a response: the card's bytes; none; those of our card */

#ifndef MAX_REPEATED
#define MAX_REPEATED 0x10000 /* what two bytes can say; less in a search, which is to be quick */
#endif

#define require(what) ((what) ? (void)0 : broken(#what, __LINE__))

static void broken(const char *what, int line) {
    fprintf(stderr, "call.c:%d: does not hold: %s\n", line, what);
    abort();
}

typedef struct {
    const uint8_t *at, *end;
    uint8_t fill;
    void *blocks[MAX_BLOCKS_TAKEN];
    int count;
    uint8_t *answer;
    size_t answered;
} run;

/* Memory of the exact size, until the end of the run. */
static uint8_t *block(run *r, size_t size) {
    require(r->count < MAX_BLOCKS_TAKEN);
    uint8_t *made = malloc(size);
    require(made || !size);
    if (size) memset(made, r->fill, size);
    return r->blocks[r->count++] = made;
}

/* A signed number, big-endian; 0 behind the end of the input. */
static int64_t number(run *r, int size) {
    uint64_t value = r->at < r->end && *r->at & 0x80 ? UINT64_MAX : 0;
    for (int i = 0; i < size; i++) value = value << 8 | (r->at < r->end ? *r->at++ : 0);
    return (int64_t)value;
}

static size_t unsigned_number(run *r, int size) {
    return (size_t)number(r, size) & (((size_t)1 << 8 * size) - 1);
}

/* Bytes behind their length, fewer where the input ends. */
static span octets(run *r, int size) {
    size_t length = unsigned_number(r, size), left = (size_t)(r->end - r->at);
    if (length > left) length = left;
    uint8_t *copy = block(r, length);
    if (length) memcpy(copy, r->at, length);
    r->at += length;
    return (span){copy, length};
}

/* Many bytes out of few: a length, then what is repeated up to it. */
static span repeated(run *r) {
    size_t length = unsigned_number(r, 2) % MAX_REPEATED;
    span what = octets(r, 2);
    uint8_t *whole = block(r, length);
    if (length) memset(whole, 0, length);
    for (size_t at = 0; what.length && at < length; at += what.length)
        memcpy(whole + at, what.data, what.length < length - at ? what.length : length - at);
    return (span){whole, length};
}

static void say(run *r, const void *data, size_t length) {
    require(r->answered + length <= MAX_ANSWER);
    if (length) memcpy(r->answer + r->answered, data, length);
    r->answered += length;
}

static void say_result(run *r, engine_error error, const void *data, size_t length) {
    require(error < ENGINE_ERRORS && error != ENGINE_LIBCRYPTO);
    require(!error == !*engine_problem(error));
    say(r, &(uint8_t){(uint8_t)error}, 1);
    if (error)
        say(r, engine_problem(error), strlen(engine_problem(error)));
    else
        say(r, data, length);
}

/* One result of several: its length in two bytes before it. */
static void say_entry(run *r, engine_error error, const void *data, size_t length) {
    if (error) length = strlen(engine_problem(error));
    say(r, (uint8_t[]){(uint8_t)(length >> 8), (uint8_t)length}, 2);
    say_result(r, error, data, length);
}

/* Scripts */

/* Static keys give what the session keys that follow from them give. */
static void require_same_by_session(run *r, engine *e, script_order order, script_form form, const uint8_t *expected,
                                    size_t size) {
    size_t length = order.enc.length, mode = (size_t)order.route.mode, same;
    if (!order.card_challenge.data) {
        uint8_t *challenge = block(r, mode);
        require(!engine_card_challenge(e, order.enc, order.sequence_counter, order.route.ssd_aid, order.route.mode,
                                       challenge));
        order.card_challenge = (span){challenge, mode};
    }
    uint8_t *s_enc = block(r, length), *s_mac = block(r, length), *s_rmac = block(r, length), *out = block(r, size);
    require(!engine_session_keys(e, order.enc, order.mac, order.host_challenge, order.card_challenge, s_enc, s_mac,
                                 s_rmac));
    order.enc = (span){s_enc, length};
    order.mac = (span){s_mac, length};
    order.from_static = 0;
    require(!script_size(&order, form, &same) && same == size);
    require(!script_render(e, &order, form, out) && !memcmp(out, expected, size));
}

static void render(run *r, engine *e) {
    script_order order = {.from_static = 0};
    script_form form = (script_form)(unsigned_number(r, 1) % FORMS);
    size_t flags = unsigned_number(r, 1), size = SIZE_MAX;
    order.route.ssd_aid = octets(r, 1);
    order.route.applet_aid = octets(r, 1);
    order.route.kvn = (int)number(r, 2);
    order.route.level = (int)number(r, 2);
    order.route.mode = (int)number(r, 2);
    order.route.key_type = (int)number(r, 2);
    order.host_challenge = octets(r, 1);
    if (flags & FROM_COUNTER)
        order.sequence_counter = number(r, 8);
    else
        order.card_challenge = octets(r, 1);
    order.enc = octets(r, 1);
    order.mac = octets(r, 1);
    order.from_static = (flags & STATIC) != 0;
    order.package = repeated(r);
    engine_error refused = script_size(&order, form, &size);
    if (refused) {
        require(size == SIZE_MAX);
        say_result(r, refused, NULL, 0);
        return;
    }
    require(size <= MAX_ANSWER);
    uint8_t *out = block(r, size);
    require(!script_render(e, &order, form, out));
    if (order.from_static) require_same_by_session(r, e, order, form, out, size);
    say_result(r, ENGINE_OK, out, size);
}

/* Sessions */

static void card_challenge(run *r, engine *e) {
    span k_enc = octets(r, 1), aid;
    int64_t counter = number(r, 8);
    aid = octets(r, 1);
    int mode = (int)number(r, 2);
    size_t length = mode > 0 ? (size_t)mode : 0;
    uint8_t *out = block(r, length);
    say_result(r, engine_card_challenge(e, k_enc, counter, aid, mode, out), out, length);
}

static void session_keys(run *r, engine *e) {
    span k_enc = octets(r, 1), k_mac = octets(r, 1), host = octets(r, 1), card = octets(r, 1);
    size_t length = k_enc.length;
    uint8_t *out[3] = {block(r, length), block(r, length), block(r, length)};
    engine_error error = engine_session_keys(e, k_enc, k_mac, host, card, out[0], out[1], out[2]);
    say_result(r, error, out[0], length);
    if (error) return;
    say(r, out[1], length);
    say(r, out[2], length);
}

static void card_cryptogram(run *r, engine *e) {
    span s_mac = octets(r, 1), host = octets(r, 1), card = octets(r, 1), cryptogram = octets(r, 1);
    say_result(r, engine_verify_card_cryptogram(e, s_mac, host, card, cryptogram), NULL, 0);
}

/* CMAC, and CBC behind an ICV that is an encrypted block, by the ways of libcrypto that the engine does not go. */
static void reference_cmac(span key, const uint8_t *message, size_t length, uint8_t mac[BLOCK]) {
    static EVP_MAC_CTX *context;
    static const char *const NAMES[] = {"AES-128-CBC", "AES-192-CBC", "AES-256-CBC"};
    if (!context) {
        EVP_MAC *cmac = EVP_MAC_fetch(NULL, "CMAC", NULL);
        context = EVP_MAC_CTX_new(cmac);
        EVP_MAC_free(cmac);
    }
    size_t written;
    char name[16];
    strcpy(name, NAMES[key.length / 8 - 2]);
    OSSL_PARAM cipher[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_CIPHER, name, 0), OSSL_PARAM_construct_end()};
    require(EVP_MAC_init(context, key.data, key.length, cipher) && EVP_MAC_update(context, message, length) &&
            EVP_MAC_final(context, mac, &written, BLOCK));
}

static void reference_cbc(span key, const uint8_t *counter_block, uint8_t *data, size_t length) {
    static EVP_CIPHER_CTX *contexts[3][2];
    EVP_CIPHER_CTX **context = contexts[key.length / 8 - 2];
    const EVP_CIPHER *ciphers[3][2] = {{EVP_aes_128_ecb(), EVP_aes_128_cbc()},
                                       {EVP_aes_192_ecb(), EVP_aes_192_cbc()},
                                       {EVP_aes_256_ecb(), EVP_aes_256_cbc()}};
    uint8_t icv[BLOCK];
    int written;
    for (int i = 0; i < 2; i++) {
        if (!context[i]) {
            context[i] = EVP_CIPHER_CTX_new();
            require(EVP_EncryptInit_ex(context[i], ciphers[key.length / 8 - 2][i], NULL, NULL, NULL));
        }
        require(EVP_EncryptInit_ex(context[i], NULL, NULL, key.data, i ? icv : NULL));
        require(EVP_CIPHER_CTX_set_padding(context[i], 0));
        if (!i) require(EVP_EncryptUpdate(context[i], icv, &written, counter_block, BLOCK));
    }
    require(EVP_EncryptUpdate(context[1], data, &written, data, (int)length) && (size_t)written == length);
}

/* The card's response to the last command, of data and status word in plain; as they are where it would not protect
 * them or they would be too long. */
static span sealed(run *r, const channel *c, span plain) {
    size_t mode = (size_t)c->mode, data = plain.length - 2;
    uint8_t message[BLOCK + 512], *response;
    if (plain.length < 2 || !(c->level & R_MAC)) return plain;
    const uint8_t *sw = plain.data + data;
    if (!(sw[0] == 0x90 && !sw[1]) && sw[0] != 0x62 && sw[0] != 0x63) return plain;
    size_t padded = data && c->level & R_ENC ? (data / BLOCK + 1) * BLOCK : data;
    if (padded + mode > 256) return plain;
    memcpy(message, c->chain, BLOCK);
    memcpy(message + BLOCK, plain.data, data);
    if (padded > data) {
        uint8_t counter[BLOCK] = {0x80};
        message[BLOCK + data] = 0x80;
        memset(message + BLOCK + data + 1, 0, padded - data - 1);
        for (int i = 0; i < 4; i++) counter[BLOCK - 1 - i] = (uint8_t)(c->counter >> 8 * i);
        reference_cbc(c->s_enc, counter, message + BLOCK, padded);
    }
    memcpy(message + BLOCK + padded, sw, 2);
    uint8_t mac[BLOCK];
    reference_cmac(c->s_rmac, message, BLOCK + padded + 2, mac);
    response = block(r, padded + mode + 2);
    memcpy(response, message + BLOCK, padded);
    memcpy(response + padded, mac, mode);
    memcpy(response + padded + mode, sw, 2);
    return (span){response, padded + mode + 2};
}

static engine_error unwrap(run *r, engine *e, const channel *c, span response) {
    size_t length = SIZE_MAX;
    uint8_t *out = block(r, response.length);
    engine_error error = channel_unwrap(e, c, response, out, &length);
    require(error || (length >= 2 && length <= response.length));
    say_entry(r, error, out, length);
    return error;
}

static void session(run *r, engine *e) {
    channel c = {.counter = 0};
    c.s_enc = octets(r, 1);
    c.s_mac = octets(r, 1);
    c.s_rmac = octets(r, 1);
    c.level = (int)number(r, 2);
    c.mode = (int)number(r, 2);
    engine_error error = channel_open(e, &c, octets(r, 2));
    if (error) {
        say_entry(r, error, NULL, 0);
        return;
    }
    while (r->at < r->end && r->count < MAX_BLOCKS_TAKEN - 8) {
        size_t kind = unsigned_number(r, 1);
        if ((error = channel_follow(e, &c, octets(r, 2)))) {
            say_entry(r, error, NULL, 0);
            return;
        }
        if (kind % RESPONSES == NONE) continue;
        span plain = octets(r, 2), response = plain;
        if (kind % RESPONSES == AS_IT_IS) {
            if (unwrap(r, e, &c, response)) return;
            continue;
        }
        size_t before = r->answered;
        response = sealed(r, &c, plain);
        if (response.data == plain.data) continue;
        if (kind % RESPONSES == SPOILT) {
            uint8_t *spoilt = block(r, response.length);
            memcpy(spoilt, response.data, response.length);
            spoilt[kind / RESPONSES * 5 % (response.length - 2)] ^= 0x10;
            require(unwrap(r, e, &c, (span){spoilt, response.length}) == ENGINE_R_MAC);
            return;
        }
        require(!unwrap(r, e, &c, response));
        require(r->answered - before == 3 + plain.length);
        require(!memcmp(r->answer + before + 3, plain.data, plain.length));
    }
}

/* Static keys */

static void kdf3(run *r, engine *e) {
    span master = octets(r, 1), kdd;
    int constant = (int)unsigned_number(r, 1), bits;
    kdd = octets(r, 1);
    bits = (int)number(r, 2);
    size_t length = bits > 0 ? (size_t)bits / 8 : 0;
    uint8_t *out = block(r, length);
    say_result(r, engine_kdf3(e, master, constant, kdd, bits, out), out, length);
}

static void kcv(run *r, engine *e) {
    uint8_t *out = block(r, KCV_LENGTH);
    say_result(r, engine_kcv(e, octets(r, 1), out), out, KCV_LENGTH);
}

static size_t once(engine *e, const uint8_t *data, size_t length, uint8_t fill, uint8_t *answer) {
    static void (*const CALLS[KINDS])(run *, engine *) = {
        [RENDER] = render,   [CARD_CHALLENGE] = card_challenge, [SESSION_KEYS] = session_keys,
        [SESSION] = session, [CARD_CRYPTOGRAM] = card_cryptogram, [KDF3] = kdf3, [KCV] = kcv,
    };
    run r;
    r.at = data;
    r.end = data + length;
    r.fill = fill;
    r.count = 0;
    r.answer = answer;
    r.answered = 0;
    CALLS[unsigned_number(&r, 1) % KINDS](&r, e);
    for (int i = 0; i < r.count; i++) free(r.blocks[i]);
    return r.answered;
}

size_t call(engine *e, const uint8_t *data, size_t length, uint8_t *answer) {
    static uint8_t again[MAX_ANSWER];
    size_t answered = once(e, data, length, 0xA5, answer);
    engine_wipe(e);
    require(once(e, data, length, 0x5A, again) == answered && !memcmp(again, answer, answered));
    return answered;
}
