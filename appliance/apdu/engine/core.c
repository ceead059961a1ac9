/* See core.h.
 *
 * Two things make it fast. CMAC runs through one CBC context, re-keyed for each key and never reset for a message: the
 * first block takes up what the context still holds. C-ENC of a whole script runs through one ECB context: each
 * command has an ICV of its own, so the n-th blocks of all commands are encrypted side by side.
 */
#include "core.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <string.h>

enum {
    SECURE_MESSAGING = 0x04,  /* CLA bit 3 (GPC Card Specification 2.3.1, 11.1.4) */
    C_ENC = 0x02,             /* levels: GPC Amendment D, 7.1.2 */
    R_MAC = 0x10,
    R_ENC = 0x20,
    RESPONSE_ICV = 0x80,      /* 6.2.7 */
    CARD_CRYPTOGRAM = 0x00,   /* derivation constants: table 4-1 */
    HOST_CRYPTOGRAM = 0x01,
    CARD_CHALLENGE = 0x02,
    DERIVE_S_ENC = 0x04,
    DERIVE_S_MAC = 0x06,
    DERIVE_S_RMAC = 0x07,
    MAX_DATA = 255,           /* data field of a short APDU */
    HEADER = 5,               /* CLA INS P1 P2 Lc */
    MAX_BLOCKS = 256,         /* P2 of STORE DATA counts from 00 to FF */
    MAX_WRAPPED = MAX_BLOCKS + 1,
    SLOT = 304,               /* chain, header, 255 bytes of data, Le, and CMAC's padding behind it */
    MAX_CMAC = 320,           /* longest input: chain, response of 256 bytes, status word, padding */
    MIN_AID = 5,
    RECEIPT_PART = 128,
    BER_TLV_ENCRYPTED = 0x30, /* P1 of STORE DATA (GPC 2.3.1, 11.11) */
    LAST_BLOCK = 0x80,
    RESPONSE_EXPECTED = 0x01,
    C_APDU = 0x22,            /* TS 101 220, table 7.19 */
    MAX_TEMPLATE = 0xFFFF,    /* as the specification's TLVs */
    KEY_SIZES = 3,
};

static const uint8_t ZERO[MAX_KEY];
static const char HEX[] = "0123456789ABCDEF";

struct engine {
    EVP_CIPHER_CTX *cbc[KEY_SIZES], *ecb[KEY_SIZES], *decrypt[KEY_SIZES];
    char hex[256][4];
    unsigned used;                /* key sizes whose contexts hold a key: a bit each */
    EVP_CIPHER_CTX *mac;          /* the one of cbc that holds the key of the moment */
    /* What follows comes from keys and is wiped, up to `icv`. */
    uint8_t state[BLOCK];         /* what that context XORs into the next block */
    uint8_t k1[BLOCK], k2[BLOCK];
    uint8_t s_enc[MAX_KEY], s_mac[MAX_KEY], challenge[BLOCK], chain[BLOCK];
    uint8_t sink[MAX_CMAC], input[MAX_CMAC];
    uint8_t icv[MAX_WRAPPED * BLOCK], row[MAX_WRAPPED * BLOCK];
    uint8_t slots[MAX_WRAPPED][SLOT];
};

static const char *const PROBLEMS[ENGINE_ERRORS] = {
    [ENGINE_OK] = "",
    [ENGINE_ENC_KEY] = "enc",
    [ENGINE_MAC_KEY] = "mac",
    [ENGINE_KEY_TYPE] = "key_type",
    [ENGINE_MODE] = "mode",
    [ENGINE_SEQUENCE_COUNTER] = "sequence_counter",
    [ENGINE_SSD_AID] = "ssd_aid",
    [ENGINE_APPLET_AID] = "applet_aid",
    [ENGINE_KVN] = "channel_kvn",
    [ENGINE_PACKAGE] = "package",
    [ENGINE_LEVEL] = "security_level",
    [ENGINE_HOST_CHALLENGE] = "host_challenge",
    [ENGINE_CARD_CHALLENGE] = "card_challenge",
    [ENGINE_CARD_CRYPTOGRAM] = "card_cryptogram",
    [ENGINE_COMMAND] = "command",
    [ENGINE_RESPONSE_LENGTH] = "response_length",
    [ENGINE_RESPONSE_DATA] = "response_data",
    [ENGINE_R_MAC_MISSING] = "r_mac_missing",
    [ENGINE_R_MAC] = "r_mac",
    [ENGINE_R_ENC_LENGTH] = "r_enc_length",
    [ENGINE_R_ENC_PADDING] = "r_enc_padding",
    [ENGINE_KEY] = "key",
    [ENGINE_BITS] = "bits",
    [ENGINE_KDD] = "kdd",
    [ENGINE_LIBCRYPTO] = "",
};

const char *engine_problem(engine_error error) { return PROBLEMS[error]; }

/* Contexts */

static EVP_CIPHER_CTX *context(const char *name, int encrypt) {
    EVP_CIPHER_CTX *made = EVP_CIPHER_CTX_new();
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, name, NULL);
    /* Only decryption holds back a last block for its padding. Told to encryption, every new key would cost twice. */
    int good = made && cipher && EVP_CipherInit_ex2(made, cipher, ZERO, ZERO, encrypt, NULL) &&
               (encrypt || EVP_CIPHER_CTX_set_padding(made, 0));
    EVP_CIPHER_free(cipher);
    if (good) return made;
    EVP_CIPHER_CTX_free(made);
    return NULL;
}

engine *engine_new(void) {
    static const char *const CBC[KEY_SIZES] = {"AES-128-CBC", "AES-192-CBC", "AES-256-CBC"};
    static const char *const ECB[KEY_SIZES] = {"AES-128-ECB", "AES-192-ECB", "AES-256-ECB"};
    engine *e = OPENSSL_zalloc(sizeof *e);
    if (!e) return NULL;
    for (int i = 0; i < KEY_SIZES; i++) {
        e->cbc[i] = context(CBC[i], 1);
        e->ecb[i] = context(ECB[i], 1);
        e->decrypt[i] = context(CBC[i], 0);
        if (!e->cbc[i] || !e->ecb[i] || !e->decrypt[i]) {
            engine_free(e);
            return NULL;
        }
    }
    for (int byte = 0; byte < 256; byte++) {
        e->hex[byte][0] = HEX[byte >> 4];
        e->hex[byte][1] = HEX[byte & 15];
        e->hex[byte][2] = ' ';
    }
    return e;
}

void engine_wipe(engine *e) {
    for (int i = 0; i < KEY_SIZES; i++) {
        if (!(e->used & 1u << i)) continue;
        EVP_EncryptInit_ex(e->cbc[i], NULL, NULL, ZERO, ZERO);
        EVP_EncryptInit_ex(e->ecb[i], NULL, NULL, ZERO, NULL);
        EVP_DecryptInit_ex(e->decrypt[i], NULL, NULL, ZERO, ZERO);
    }
    e->used = 0;
    OPENSSL_cleanse(e->state, offsetof(engine, icv) - offsetof(engine, state));
}

void engine_free(engine *e) {
    if (!e) return;
    for (int i = 0; i < KEY_SIZES; i++) {
        EVP_CIPHER_CTX_free(e->cbc[i]);
        EVP_CIPHER_CTX_free(e->ecb[i]);
        EVP_CIPHER_CTX_free(e->decrypt[i]);
    }
    OPENSSL_clear_free(e, sizeof *e);
}

/* Primitives: they answer 1, or 0 where libcrypto failed */

static int is_key(span key) { return key.length == 16 || key.length == 24 || key.length == 32; }
static size_t key_size(engine *e, span key) {
    size_t size = key.length / 8 - 2;
    e->used |= 1u << size;
    return size;
}
static span bytes(const uint8_t *data, size_t length) { return (span){data, length}; }

static void xor_block(uint8_t *into, const uint8_t *from) {
    uint64_t a[2], b[2];
    memcpy(a, into, BLOCK);
    memcpy(b, from, BLOCK);
    a[0] ^= b[0];
    a[1] ^= b[1];
    memcpy(into, a, BLOCK);
}

static int update(EVP_CIPHER_CTX *context, uint8_t *out, const uint8_t *in, size_t length) {
    int written;
    return EVP_CipherUpdate(context, out, &written, in, (int)length) && (size_t)written == length;
}

/* Multiplication by x in GF(2^128) (RFC 4493, 2.3), with no branch on the key. */
static void doubled(const uint8_t *in, uint8_t *out) {
    uint8_t carry = (uint8_t)(0x87 & -(in[0] >> 7));
    for (int i = 0; i < BLOCK - 1; i++) out[i] = (uint8_t)(in[i] << 1 | in[i + 1] >> 7);
    out[BLOCK - 1] = (uint8_t)(in[BLOCK - 1] << 1 ^ carry);
}

/* Every CMAC until the next call is one under this key. */
static int mac_key(engine *e, span key) {
    e->mac = e->cbc[key_size(e, key)];
    if (!EVP_EncryptInit_ex(e->mac, NULL, NULL, key.data, ZERO) || !update(e->mac, e->state, ZERO, BLOCK)) return 0;
    doubled(e->state, e->k1);
    doubled(e->k1, e->k2);
    return 1;
}

/* AES-CMAC (RFC 4493, 2.4) of a message with at least a block of room behind it. The first block is spoilt, what stands
 * behind the message too. */
static int cmac(engine *e, uint8_t *message, size_t length, uint8_t mac[BLOCK]) {
    size_t padded = length;
    const uint8_t *subkey = e->k1;
    if (length % BLOCK || !length) {
        padded = (length / BLOCK + 1) * BLOCK;
        message[length] = 0x80;
        memset(message + length + 1, 0, padded - length - 1);
        subkey = e->k2;
    }
    uint8_t *last = message + padded - BLOCK;
    xor_block(message, e->state);
    xor_block(last, subkey);
    if (!update(e->mac, e->sink, message, padded)) return 0;
    xor_block(last, subkey);
    memcpy(e->state, e->sink + padded - BLOCK, BLOCK);
    memcpy(mac, e->state, BLOCK);
    return 1;
}

/* SCP03's derivation under the key of the moment (GPC Amendment D, 4.1.5), bits / 8 bytes. */
static int derive(engine *e, int constant, size_t length, span first, span second, uint8_t *out) {
    size_t bits = 8 * length;
    for (int i = 1; length; i++) {
        uint8_t mac[BLOCK], *input = e->input;
        size_t part = length < BLOCK ? length : BLOCK;
        memset(input, 0, BLOCK);
        input[11] = (uint8_t)constant;
        input[13] = (uint8_t)(bits >> 8);
        input[14] = (uint8_t)bits;
        input[15] = (uint8_t)i;
        memcpy(input + BLOCK, first.data, first.length);
        memcpy(input + BLOCK + first.length, second.data, second.length);
        if (!cmac(e, input, BLOCK + first.length + second.length, mac)) return 0;
        memcpy(out, mac, part);
        OPENSSL_cleanse(mac, sizeof mac);
        out += part;
        length -= part;
    }
    return 1;
}

static int derive_challenge(engine *e, int64_t sequence_counter, span aid, int mode, uint8_t *out) {
    uint8_t counter[3] = {
        (uint8_t)(sequence_counter >> 16), (uint8_t)(sequence_counter >> 8), (uint8_t)sequence_counter};
    return derive(e, CARD_CHALLENGE, (size_t)mode, bytes(counter, sizeof counter), aid, out);
}

/* Checks at the door */

static int is_aid(span aid) { return aid.length >= MIN_AID && aid.length <= MAX_AID; }
static int is_mode(int mode) { return mode == 8 || mode == 16; }
static int is_counter(int64_t counter) { return counter >= 1 && counter <= MAX_SEQUENCE_COUNTER; }
static int is_level(int level) {
    return level == 0x01 || level == 0x03 || level == 0x11 || level == 0x13 || level == 0x33;
}

static engine_error check_keys(span enc, span mac) {
    if (!is_key(enc)) return ENGINE_ENC_KEY;
    return is_key(mac) && mac.length == enc.length ? ENGINE_OK : ENGINE_MAC_KEY;
}

/* Most plaintext bytes in one wrapped command. */
static size_t capacity(int level, int mode) {
    size_t room = MAX_DATA - (size_t)mode;
    return level & C_ENC ? room / BLOCK * BLOCK - 1 : room;
}

static size_t blocks_of(const script_order *order) {
    size_t size = capacity(order->route.level, order->route.mode);
    return order->package.length / size + (order->package.length % size != 0);
}

static engine_error check(const script_order *order) {
    const script_route *route = &order->route;
    size_t challenge = (size_t)route->mode;
    engine_error keys = check_keys(order->enc, order->mac);
    if (keys) return keys;
    if (route->key_type < 1 || route->key_type > 3) return ENGINE_KEY_TYPE;
    if (!is_mode(route->mode)) return ENGINE_MODE;
    int given = !order->from_static || order->card_challenge.data;
    if (!given && !is_counter(order->sequence_counter)) return ENGINE_SEQUENCE_COUNTER;
    if (!is_aid(route->ssd_aid)) return ENGINE_SSD_AID;
    if (!is_aid(route->applet_aid)) return ENGINE_APPLET_AID;
    if (route->kvn < 0x01 || route->kvn > 0x7F) return ENGINE_KVN;
    size_t blocks = blocks_of(order);
    if (blocks < 1 || blocks > MAX_BLOCKS) return ENGINE_PACKAGE;
    if (!is_level(route->level)) return ENGINE_LEVEL;
    if (order->host_challenge.length != challenge) return ENGINE_HOST_CHALLENGE;
    if (given && order->card_challenge.length != challenge) return ENGINE_CARD_CHALLENGE;
    return ENGINE_OK;
}

/* Writing a script in one of its forms. With `out` NULL nothing is written, and what would be is counted. */

typedef struct {
    const engine *e;
    script_form form;
    uint8_t *out;
    size_t written;
    size_t templates[2]; /* bytes of the C-APDUs in each part of an expanded script */
    int part;
} writer;

static void put(writer *w, const void *data, size_t length) {
    if (w->out) memcpy(w->out + w->written, data, length);
    w->written += length;
}

static void put_byte(writer *w, uint8_t byte) { put(w, &byte, 1); }

/* A protobuf length (at most 2^21) and its size. */
static size_t varint_size(size_t value) { return value < 0x80 ? 1 : value < 0x4000 ? 2 : 3; }
static void put_varint(writer *w, size_t value) {
    for (; value >= 0x80; value >>= 7) put_byte(w, (uint8_t)(value | 0x80));
    put_byte(w, (uint8_t)value);
}

/* A definite BER length (at most MAX_TEMPLATE) and its size. */
static size_t ber_size(size_t value) { return value < 0x80 ? 1 : value < 0x100 ? 2 : 3; }
static void put_ber(writer *w, size_t value) {
    size_t more = ber_size(value) - 1;
    if (more) put_byte(w, (uint8_t)(0x80 | more));
    for (size_t i = more; i-- > 1;) put_byte(w, (uint8_t)(value >> 8 * i));
    put_byte(w, (uint8_t)value);
}

static size_t decimal(size_t value, char *out) {
    char digits[4];
    size_t length = 0, i = 0;
    do digits[length++] = (char)('0' + value % 10);
    while (value /= 10);
    while (length) out[i++] = digits[--length];
    return i;
}

/* What a command is for, in words. */
typedef struct {
    const char *text;
    size_t length;
} label;

#define LABEL(text) ((label){text, sizeof text - 1})

/* A ScriptCommand of delivery.proto: apdu 1, expected_status_words 2 (packed: 9000), purpose 3. */
static void put_command(writer *w, const uint8_t *apdu, size_t length, label what, size_t number, size_t count) {
    char purpose[48];
    size_t named = what.length;
    memcpy(purpose, what.text, named);
    if (number) {
        named += decimal(number, purpose + named);
        purpose[named++] = '/';
        named += decimal(count, purpose + named);
    }
    put_byte(w, 0x0A);
    put_varint(w, 1 + varint_size(length) + length + 5 + 2 + named);
    put_byte(w, 0x0A);
    put_varint(w, length);
    put(w, apdu, length);
    put(w, "\x12\x03\x80\xA0\x02\x1A", 6);
    put_byte(w, (uint8_t)named);
    put(w, purpose, named);
}

static void put_line(writer *w, const uint8_t *apdu, size_t length) {
    if (w->out) {
        uint8_t *to = w->out + w->written;
        /* Four bytes at a time, of which the next pair takes back the last; the line's end has none behind it. */
        for (size_t i = 0; i < length - 1; i++, to += 3) memcpy(to, w->e->hex[apdu[i]], 4);
        memcpy(to, w->e->hex[apdu[length - 1]], 2);
        to[2] = '\n';
    }
    w->written += 3 * length;
}

/* One command; `number` of `count` is said behind `what` where it is not 0. While nothing is written, `apdu` is NULL. */
static void command(writer *w, const uint8_t *apdu, size_t length, label what, size_t number, size_t count) {
    switch (w->form) {
    case FORM_COMMANDS:
        put_command(w, apdu, length, what, number, count);
        break;
    case FORM_TEXT:
        put_line(w, apdu, length);
        break;
    default:
        put_byte(w, C_APDU);
        put_ber(w, length);
        put(w, apdu, length);
        if (!w->out) w->templates[w->part] += 1 + ber_size(length) + length;
    }
}

static int is_expanded(script_form form) { return form >= FORM_EXPANDED_DEFINITE; }

/* The command that selects a part's application, or, in the expanded form, a RemoteScript of delivery.proto around what
 * follows (application_aid 1, template 2): there the carrier selects. */
static void begin_part(writer *w, int part, span aid, int with_le, label what) {
    w->part = part;
    if (!is_expanded(w->form)) {
        uint8_t select[HEADER + MAX_AID + 1] = {0x00, 0xA4, 0x04, with_le ? 0x00 : 0x0C, (uint8_t)aid.length};
        memcpy(select + HEADER, aid.data, aid.length);
        command(w, select, HEADER + aid.length + (size_t)with_le, what, 0, 0);
        return;
    }
    size_t inside = w->templates[part];
    int definite = w->form == FORM_EXPANDED_DEFINITE;
    size_t template = definite ? 1 + ber_size(inside) + inside : 2 + inside + 2;
    put_byte(w, 0x2A);
    put_varint(w, 2 + aid.length + 1 + varint_size(template) + template);
    put_byte(w, 0x0A);
    put_byte(w, (uint8_t)aid.length);
    put(w, aid.data, aid.length);
    put_byte(w, 0x12);
    put_varint(w, template);
    put_byte(w, definite ? 0xAA : 0xAE);
    if (definite)
        put_ber(w, inside);
    else
        put_byte(w, 0x80);
}

static void end_part(writer *w) {
    if (w->form == FORM_EXPANDED_INDEFINITE) put(w, "\0", 2);
}

/* The size of a wrapped command without Le: its data field is `length` bytes of plaintext, C-MAC not counted. */
static size_t wrapped_data(const script_route *route, size_t length) {
    return route->level & C_ENC ? (length / BLOCK + 1) * BLOCK : length;
}

static size_t wrapped_size(const script_route *route, size_t length, int with_le) {
    return HEADER + wrapped_data(route, length) + (size_t)route->mode + (size_t)with_le;
}

static size_t install_length(const script_route *route) { return 3 + route->applet_aid.length + 3; }

static size_t store_length(const script_order *order, size_t number, size_t blocks) {
    size_t size = capacity(order->route.level, order->route.mode);
    return number < blocks ? size : order->package.length - (blocks - 1) * size;
}

/* Walks through a script; `e` is NULL where only sizes are wanted. */
static void walk(writer *w, const script_order *order, const uint8_t *authenticate) {
    const script_route *route = &order->route;
    size_t blocks = blocks_of(order), challenge = (size_t)route->mode;
    int with_le = (route->level & R_MAC) != 0;
    begin_part(w, 0, route->ssd_aid, 1, LABEL("SELECT SSD"));
    uint8_t initialize[HEADER + BLOCK + 1] = {0x80, 0x50, (uint8_t)route->kvn, 0x00, (uint8_t)challenge};
    memcpy(initialize + HEADER, order->host_challenge.data, challenge);
    command(w, initialize, HEADER + challenge + 1, LABEL("INITIALIZE UPDATE"), 0, 0);
    command(w, authenticate, HEADER + 2 * challenge, LABEL("EXTERNAL AUTHENTICATE"), 0, 0);
    command(w, w->out ? w->e->slots[0] + BLOCK : NULL, wrapped_size(route, install_length(route), 1),
            LABEL("INSTALL [for personalization]"), 0, 0);
    for (size_t number = 1; number <= blocks; number++) {
        size_t size = wrapped_size(route, store_length(order, number, blocks), with_le);
        command(w, w->out ? w->e->slots[number] + BLOCK : NULL, size, LABEL("STORE DATA "), number, blocks);
    }
    end_part(w);
    begin_part(w, 1, route->applet_aid, 0, LABEL("SELECT applet"));
    size_t parts = route->key_type == 1 ? 3 : 1; /* receipts of 272, 80 and 112 bytes */
    for (size_t part = 1; part <= parts; part++) {
        const uint8_t get[HEADER] = {0x80, 0xCA, 0xDF, (uint8_t)(0x20 + part), 0x00};
        command(w, get, sizeof get, LABEL("GET DATA receipt "), part, parts);
    }
    end_part(w);
}

static void measure(writer *w, const script_order *order) {
    walk(w, order, NULL);
    if (!is_expanded(w->form)) return;
    /* The lengths in front of the templates were not known in the first walk. */
    w->written = 0;
    size_t templates[2] = {w->templates[0], w->templates[1]};
    walk(w, order, NULL);
    memcpy(w->templates, templates, sizeof templates);
}

engine_error script_size(const script_order *order, script_form form, size_t *size) {
    engine_error refused = check(order);
    if (refused) return refused;
    writer w = {.form = form};
    measure(&w, order);
    if (form == FORM_EXPANDED_DEFINITE && w.templates[0] > MAX_TEMPLATE) return ENGINE_PACKAGE;
    *size = w.written;
    return ENGINE_OK;
}

/* Wrapping */

/* Plaintext of every wrapped command into its slot: INSTALL, then the blocks of the package; padded where encrypted. */
static void fill_slots(engine *e, const script_order *order, size_t blocks) {
    const script_route *route = &order->route;
    int encrypted = (route->level & C_ENC) != 0, with_le = (route->level & R_MAC) != 0;
    const uint8_t *from = order->package.data;
    for (size_t number = 0; number <= blocks; number++) {
        uint8_t *header = e->slots[number] + BLOCK, *data = header + HEADER;
        size_t length = number ? store_length(order, number, blocks) : install_length(route);
        if (number) {
            uint8_t last = number == blocks ? LAST_BLOCK : 0;
            memcpy(header, (uint8_t[]){0x80, 0xE2, BER_TLV_ENCRYPTED | last | with_le, (uint8_t)(number - 1)}, 4);
            memcpy(data, from, length);
            from += length;
        } else {
            memcpy(header, (uint8_t[]){0x80, 0xE6, 0x20, 0x00}, 4);
            memset(data, 0, length);
            data[2] = (uint8_t)route->applet_aid.length;
            memcpy(data + 3, route->applet_aid.data, route->applet_aid.length);
        }
        size_t padded = wrapped_data(route, length);
        if (encrypted) {
            data[length] = 0x80;
            memset(data + length + 1, 0, padded - length - 1);
        }
        header[0] |= SECURE_MESSAGING;
        header[4] = (uint8_t)(padded + (size_t)route->mode);
    }
}

/* C-ENC of every slot (GPC Amendment D, 6.2.6): CBC from an ICV that is the encrypted number of the command, run so
 * that each call encrypts the next block of all commands. */
static int encrypt_slots(engine *e, const script_order *order, span s_enc, size_t count) {
    EVP_CIPHER_CTX *ecb = e->ecb[key_size(e, s_enc)];
    size_t mac = (size_t)order->route.mode, longest = 0;
    memset(e->icv, 0, count * BLOCK);
    for (size_t number = 0; number < count; number++) {
        e->icv[number * BLOCK + 14] = (uint8_t)((number + 1) >> 8);
        e->icv[number * BLOCK + 15] = (uint8_t)(number + 1);
        size_t length = e->slots[number][BLOCK + 4] - mac;
        if (length > longest) longest = length;
    }
    if (!EVP_EncryptInit_ex(ecb, NULL, NULL, s_enc.data, NULL) || !update(ecb, e->icv, e->icv, count * BLOCK)) return 0;
    for (size_t at = 0; at < longest; at += BLOCK) {
        size_t used = 0;
        for (size_t number = 0; number < count; number++) {
            uint8_t *data = e->slots[number] + BLOCK + HEADER;
            if (at >= data[-1] - mac) continue;
            memcpy(e->row + used, data + at, BLOCK);
            xor_block(e->row + used, at ? data + at - BLOCK : e->icv + number * BLOCK);
            used += BLOCK;
        }
        if (!update(ecb, e->row, e->row, used)) return 0;
        used = 0;
        for (size_t number = 0; number < count; number++) {
            uint8_t *data = e->slots[number] + BLOCK + HEADER;
            if (at >= data[-1] - mac) continue;
            memcpy(data + at, e->row + used, BLOCK);
            used += BLOCK;
        }
    }
    return 1;
}

/* C-MAC behind the data of a command at `slot` + BLOCK (6.2.4), and Le 00 behind that. */
static int mac_slot(engine *e, uint8_t *slot, size_t mode) {
    size_t length = HEADER + slot[BLOCK + 4] - mode;
    memcpy(slot, e->chain, BLOCK);
    if (!cmac(e, slot, BLOCK + length, e->chain)) return 0;
    memcpy(slot + BLOCK + length, e->chain, mode);
    slot[BLOCK + length + mode] = 0x00;
    return 1;
}

/* Session keys where the order has static ones; the card's challenge where it has none. */
static int open_session(engine *e, const script_order *order, span *s_enc, span *s_mac, span *card) {
    *s_enc = order->enc;
    *s_mac = order->mac;
    *card = order->card_challenge;
    if (!order->from_static) return 1;
    size_t length = order->enc.length;
    *s_enc = bytes(e->s_enc, length);
    *s_mac = bytes(e->s_mac, length);
    if (!mac_key(e, order->enc)) return 0;
    if (!card->data) {
        *card = bytes(e->challenge, (size_t)order->route.mode);
        if (!derive_challenge(e, order->sequence_counter, order->route.ssd_aid, order->route.mode, e->challenge))
            return 0;
    }
    return derive(e, DERIVE_S_ENC, length, order->host_challenge, *card, e->s_enc) && mac_key(e, order->mac) &&
           derive(e, DERIVE_S_MAC, length, order->host_challenge, *card, e->s_mac);
}

engine_error script_render(engine *e, const script_order *order, script_form form, uint8_t *out) {
    span s_enc, s_mac, card;
    size_t blocks = blocks_of(order), mode = (size_t)order->route.mode;
    uint8_t authenticate[SLOT] = {0}, *header = authenticate + BLOCK;
    if (!open_session(e, order, &s_enc, &s_mac, &card) || !mac_key(e, s_mac)) return ENGINE_LIBCRYPTO;
    memcpy(header, (uint8_t[]){0x84, 0x82, (uint8_t)order->route.level, 0x00, (uint8_t)(2 * mode)}, HEADER);
    if (!derive(e, HOST_CRYPTOGRAM, mode, order->host_challenge, card, header + HEADER)) return ENGINE_LIBCRYPTO;
    memset(e->chain, 0, BLOCK);
    if (!mac_slot(e, authenticate, mode)) return ENGINE_LIBCRYPTO;
    fill_slots(e, order, blocks);
    if (order->route.level & C_ENC && !encrypt_slots(e, order, s_enc, blocks + 1)) return ENGINE_LIBCRYPTO;
    for (size_t number = 0; number <= blocks; number++)
        if (!mac_slot(e, e->slots[number], mode)) return ENGINE_LIBCRYPTO;
    writer w = {.e = e, .form = form};
    if (is_expanded(form)) measure(&w, order);
    w.written = 0;
    w.out = out;
    walk(&w, order, header);
    return ENGINE_OK;
}

/* Sessions */

engine_error engine_card_challenge(engine *e, span k_enc, int64_t sequence_counter, span aid, int mode, uint8_t *out) {
    if (!is_key(k_enc)) return ENGINE_ENC_KEY;
    if (!is_mode(mode)) return ENGINE_MODE;
    if (!is_counter(sequence_counter)) return ENGINE_SEQUENCE_COUNTER;
    if (!is_aid(aid)) return ENGINE_SSD_AID;
    return mac_key(e, k_enc) && derive_challenge(e, sequence_counter, aid, mode, out) ? ENGINE_OK : ENGINE_LIBCRYPTO;
}

static engine_error check_challenges(span host, span card) {
    if (!is_mode((int)host.length) || host.length > BLOCK) return ENGINE_HOST_CHALLENGE;
    return card.length == host.length ? ENGINE_OK : ENGINE_CARD_CHALLENGE;
}

engine_error engine_session_keys(engine *e, span k_enc, span k_mac, span host_challenge, span card_challenge,
                                 uint8_t *s_enc, uint8_t *s_mac, uint8_t *s_rmac) {
    engine_error refused = check_keys(k_enc, k_mac);
    if (!refused) refused = check_challenges(host_challenge, card_challenge);
    if (refused) return refused;
    size_t length = k_enc.length;
    int good = mac_key(e, k_enc) && derive(e, DERIVE_S_ENC, length, host_challenge, card_challenge, s_enc) &&
               mac_key(e, k_mac) && derive(e, DERIVE_S_MAC, length, host_challenge, card_challenge, s_mac) &&
               derive(e, DERIVE_S_RMAC, length, host_challenge, card_challenge, s_rmac);
    return good ? ENGINE_OK : ENGINE_LIBCRYPTO;
}

engine_error engine_verify_card_cryptogram(engine *e, span s_mac, span host_challenge, span card_challenge,
                                           span cryptogram) {
    uint8_t expected[BLOCK];
    if (!is_key(s_mac)) return ENGINE_MAC_KEY;
    engine_error refused = check_challenges(host_challenge, card_challenge);
    if (refused) return refused;
    if (cryptogram.length != host_challenge.length) return ENGINE_CARD_CRYPTOGRAM;
    if (!mac_key(e, s_mac) ||
        !derive(e, CARD_CRYPTOGRAM, host_challenge.length, host_challenge, card_challenge, expected))
        return ENGINE_LIBCRYPTO;
    return CRYPTO_memcmp(expected, cryptogram.data, cryptogram.length) ? ENGINE_CARD_CRYPTOGRAM : ENGINE_OK;
}

/* The chain moves on by a command with its C-MAC, and Le perhaps. */
static engine_error advance(engine *e, channel *c, span command) {
    size_t mode = (size_t)c->mode;
    if (command.length < HEADER || command.data[4] < mode || command.length < HEADER + (size_t)command.data[4])
        return ENGINE_COMMAND;
    size_t length = HEADER + command.data[4] - mode;
    memcpy(e->input, c->chain, BLOCK);
    memcpy(e->input + BLOCK, command.data, length);
    return mac_key(e, c->s_mac) && cmac(e, e->input, BLOCK + length, c->chain) ? ENGINE_OK : ENGINE_LIBCRYPTO;
}

engine_error channel_open(engine *e, channel *c, span external_authenticate) {
    engine_error refused = check_keys(c->s_enc, c->s_mac);
    if (refused) return refused;
    if (!is_key(c->s_rmac) || c->s_rmac.length != c->s_mac.length) return ENGINE_MAC_KEY;
    if (!is_level(c->level)) return ENGINE_LEVEL;
    if (!is_mode(c->mode)) return ENGINE_MODE;
    memset(c->chain, 0, BLOCK);
    c->counter = 0;
    return advance(e, c, external_authenticate);
}

engine_error channel_follow(engine *e, channel *c, span command) {
    c->counter++;
    return advance(e, c, command);
}

/* Plain data in place of encrypted (6.2.7); `length` becomes that of the plain. */
static engine_error decrypt_response(engine *e, const channel *c, uint8_t *data, size_t *length) {
    uint8_t icv[BLOCK] = {RESPONSE_ICV};
    size_t size = key_size(e, c->s_enc), plain = *length;
    if (plain % BLOCK) return ENGINE_R_ENC_LENGTH;
    for (int i = 0; i < 4; i++) icv[BLOCK - 1 - i] = (uint8_t)(c->counter >> 8 * i);
    if (!EVP_EncryptInit_ex(e->ecb[size], NULL, NULL, c->s_enc.data, NULL) || !update(e->ecb[size], icv, icv, BLOCK) ||
        !EVP_DecryptInit_ex(e->decrypt[size], NULL, NULL, c->s_enc.data, icv) ||
        !update(e->decrypt[size], data, data, plain))
        return ENGINE_LIBCRYPTO;
    while (plain && !data[plain - 1]) plain--;
    if (!plain || data[plain - 1] != 0x80 || *length - plain >= BLOCK) return ENGINE_R_ENC_PADDING;
    *length = plain - 1;
    return ENGINE_OK;
}

engine_error channel_unwrap(engine *e, const channel *c, span response, uint8_t *out, size_t *length) {
    size_t mode = (size_t)c->mode;
    if (response.length < 2 || response.length > MAX_RESPONSE) return ENGINE_RESPONSE_LENGTH;
    size_t data = response.length - 2;
    const uint8_t *sw = response.data + data;
    if (!(c->level & R_MAC)) {
        memcpy(out, response.data, *length = response.length);
        return ENGINE_OK;
    }
    /* An error status comes alone and unprotected; 62xx and 63xx are warnings. */
    if (!(sw[0] == 0x90 && sw[1] == 0x00) && sw[0] != 0x62 && sw[0] != 0x63) {
        memcpy(out, sw, *length = 2);
        return data ? ENGINE_RESPONSE_DATA : ENGINE_OK;
    }
    if (data < mode) return ENGINE_R_MAC_MISSING;
    data -= mode;
    uint8_t mac[BLOCK], *input = e->input;
    memcpy(input, c->chain, BLOCK);
    memcpy(input + BLOCK, response.data, data);
    memcpy(input + BLOCK + data, sw, 2);
    if (!mac_key(e, c->s_rmac) || !cmac(e, input, BLOCK + data + 2, mac)) return ENGINE_LIBCRYPTO;
    if (CRYPTO_memcmp(mac, response.data + data, mode)) return ENGINE_R_MAC;
    memcpy(out, response.data, data);
    if (data && c->level & R_ENC) {
        engine_error refused = decrypt_response(e, c, out, &data);
        if (refused) return refused;
    }
    memcpy(out + data, sw, 2);
    *length = data + 2;
    return ENGINE_OK;
}

/* Static keys */

engine_error engine_kdf3(engine *e, span master, int constant, span kdd, int bits, uint8_t *out) {
    if (!is_key(master)) return ENGINE_KEY;
    if (bits != 128 && bits != 192 && bits != 256) return ENGINE_BITS;
    if (kdd.length != KDD_LENGTH) return ENGINE_KDD;
    if (!mac_key(e, master)) return ENGINE_LIBCRYPTO;
    size_t left = (size_t)bits / 8;
    for (int i = 1; left; i++) {
        uint8_t mac[BLOCK], *input = e->input;
        size_t part = left < BLOCK ? left : BLOCK;
        memcpy(input, (uint8_t[]){(uint8_t)i, 0, 0, 0, (uint8_t)constant, 0}, 6);
        memcpy(input + 6, kdd.data, KDD_LENGTH);
        if (!cmac(e, input, BLOCK, mac)) return ENGINE_LIBCRYPTO;
        memcpy(out, mac, part);
        OPENSSL_cleanse(mac, sizeof mac);
        out += part;
        left -= part;
    }
    return ENGINE_OK;
}

engine_error engine_kcv(engine *e, span key, uint8_t out[KCV_LENGTH]) {
    uint8_t block[BLOCK];
    if (!is_key(key)) return ENGINE_KEY;
    memset(block, 0x01, sizeof block);
    EVP_CIPHER_CTX *ecb = e->ecb[key_size(e, key)];
    if (!EVP_EncryptInit_ex(ecb, NULL, NULL, key.data, NULL) || !update(ecb, block, block, BLOCK))
        return ENGINE_LIBCRYPTO;
    memcpy(out, block, KCV_LENGTH);
    OPENSSL_cleanse(block, sizeof block);
    return ENGINE_OK;
}
