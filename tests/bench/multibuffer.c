/* Many SIMs side by side through Intel's multi-buffer library (libipsec-mb), against the engine: is it worth its keep?
 *
 *   gcc -O3 -I appliance/apdu/engine tests/bench/multibuffer.c -lcrypto -lIPSec_MB -o multibuffer && ./multibuffer [seconds]
 *
 * It renders the same scripts as `script_render` (S8, level 03, AES-128, static keys and counters), holds them against
 * it byte by byte, and then prints two numbers: scripts a second through the lanes, and through the engine.
 */
#include "core.c"

#include <intel-ipsec-mb.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { LANES = 32, SIMS = 512, PACKAGE = 2480, BATCH = 512, ROUND_KEYS = 11 * BLOCK };

typedef struct {
    uint8_t expanded[ROUND_KEYS], k1[BLOCK], k2[BLOCK];
} __attribute__((aligned(64))) lane_key;

typedef struct {
    lane_key enc, mac;
    const script_order *order;
    engine *e; /* slots, ICVs, chain */
    uint8_t authenticate[SLOT], input[MAX_CMAC], sink[MAX_CMAC], *message;
    size_t length, padded, blocks;
} lane;

static IMB_MGR *manager;
static IMB_JOB jobs[BATCH] __attribute__((aligned(64)));
static uint32_t waiting;
static lane lanes[LANES];

static void run(void) {
    for (uint32_t at = 0; at < waiting; at += IMB_MAX_BURST_SIZE) {
        uint32_t count = waiting - at < IMB_MAX_BURST_SIZE ? waiting - at : IMB_MAX_BURST_SIZE;
        if (IMB_SUBMIT_CIPHER_BURST_NOCHECK(manager, jobs + at, count, IMB_CIPHER_CBC, IMB_DIR_ENCRYPT,
                                            IMB_KEY_128_BYTES) != count)
            abort();
    }
    waiting = 0;
}

static void cbc(const lane_key *key, const uint8_t *iv, const uint8_t *in, uint8_t *out, size_t length) {
    if (waiting == BATCH) run();
    IMB_JOB *job = &jobs[waiting++];
    job->src = in;
    job->dst = out;
    job->enc_keys = key->expanded;
    job->iv = iv;
    job->iv_len_in_bytes = BLOCK;
    job->key_len_in_bytes = 16;
    job->cipher_start_src_offset_in_bytes = 0;
    job->msg_len_to_cipher_in_bytes = length;
}

static void expand(lane_key *key, const uint8_t *from) {
    static uint8_t decrypting[ROUND_KEYS] __attribute__((aligned(64)));
    IMB_AES_KEYEXP_128(manager, from, key->expanded, decrypting);
}

static void begin_subkeys(lane_key *key) { cbc(key, ZERO, ZERO, key->k1, BLOCK); }
static void end_subkeys(lane_key *key) {
    uint8_t l[BLOCK];
    memcpy(l, key->k1, BLOCK);
    doubled(l, key->k1);
    doubled(key->k1, key->k2);
}

static const uint8_t *subkey(const lane *l, const lane_key *key) { return l->length % BLOCK ? key->k2 : key->k1; }

static void begin_cmac(lane *l, const lane_key *key, uint8_t *message, size_t length) {
    l->message = message;
    l->length = l->padded = length;
    if (length % BLOCK) {
        l->padded = (length / BLOCK + 1) * BLOCK;
        message[length] = 0x80;
        memset(message + length + 1, 0, l->padded - length - 1);
    }
    xor_block(message + l->padded - BLOCK, subkey(l, key));
    cbc(key, ZERO, message, l->sink, l->padded);
}

static void end_cmac(lane *l, const lane_key *key, uint8_t *out, size_t length) {
    xor_block(l->message + l->padded - BLOCK, subkey(l, key));
    memcpy(out, l->sink + l->padded - BLOCK, length);
}

static void begin_derive(lane *l, const lane_key *key, int constant, size_t length, span first, span second) {
    memset(l->input, 0, BLOCK);
    l->input[11] = (uint8_t)constant;
    l->input[14] = (uint8_t)(8 * length);
    l->input[15] = 1;
    memcpy(l->input + BLOCK, first.data, first.length);
    memcpy(l->input + BLOCK + first.length, second.data, second.length);
    begin_cmac(l, key, l->input, BLOCK + first.length + second.length);
}

#define EACH(l) for (lane *l = lanes; l < lanes + count; l++)

static void derive_all(size_t count, int with_enc, int constant, size_t length, size_t to) {
    EACH(l) {
        lane_key *key = with_enc ? &l->enc : &l->mac;
        begin_derive(l, key, constant, length, l->order->host_challenge, bytes(l->e->challenge, 8));
    }
    run();
    EACH(l) end_cmac(l, with_enc ? &l->enc : &l->mac, (uint8_t *)l->e + to, length);
}

static void mac_all(size_t count, size_t number, int authenticate) {
    EACH(l) {
        uint8_t *slot = authenticate ? l->authenticate : l->e->slots[number];
        if (!authenticate && number > l->blocks) continue;
        memcpy(slot, l->e->chain, BLOCK);
        begin_cmac(l, &l->mac, slot, BLOCK + HEADER + slot[BLOCK + 4] - 8);
    }
    run();
    EACH(l) {
        if (!authenticate && number > l->blocks) continue;
        end_cmac(l, &l->mac, l->e->chain, BLOCK);
        memcpy(l->message + l->length, l->e->chain, 8);
        l->message[l->length + 8] = 0x00;
    }
}

static void encrypt_all(size_t count) {
    IMB_JOB *got[LANES];
    static const uint8_t *numbers;
    static uint8_t counted[MAX_WRAPPED * BLOCK];
    if (!numbers) {
        for (int i = 0; i < MAX_WRAPPED; i++) counted[i * BLOCK + 15] = (uint8_t)(i + 1);
        numbers = counted;
    }
    if (IMB_GET_NEXT_BURST(manager, (uint32_t)count, got) != count) abort();
    for (size_t i = 0; i < count; i++) {
        IMB_JOB *job = got[i];
        job->src = numbers;
        job->dst = lanes[i].e->icv;
        job->enc_keys = job->dec_keys = lanes[i].enc.expanded;
        job->iv_len_in_bytes = 0;
        job->key_len_in_bytes = 16;
        job->cipher_start_src_offset_in_bytes = 0;
        job->msg_len_to_cipher_in_bytes = (lanes[i].blocks + 1) * BLOCK;
        job->cipher_mode = IMB_CIPHER_ECB;
        job->cipher_direction = IMB_DIR_ENCRYPT;
        job->hash_alg = IMB_AUTH_NULL;
        job->chain_order = IMB_ORDER_CIPHER_HASH;
    }
    if (IMB_SUBMIT_BURST_NOCHECK(manager, (uint32_t)count, got) != count) abort();
    EACH(l) for (size_t number = 0; number <= l->blocks; number++) {
        uint8_t *data = l->e->slots[number] + BLOCK + HEADER;
        cbc(&l->enc, l->e->icv + number * BLOCK, data, data, data[-1] - 8u);
    }
    run();
}

static void render_lanes(const script_order *orders, size_t count, uint8_t **outs) {
    size_t most = 0;
    EACH(l) {
        l->order = orders + (l - lanes);
        expand(&l->enc, l->order->enc.data);
        expand(&l->mac, l->order->mac.data);
        begin_subkeys(&l->enc);
        begin_subkeys(&l->mac);
        memset(l->e->chain, 0, BLOCK);
    }
    run();
    EACH(l) {
        int64_t n = l->order->sequence_counter;
        uint8_t counter[3] = {(uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n};
        end_subkeys(&l->enc);
        end_subkeys(&l->mac);
        begin_derive(l, &l->enc, CARD_CHALLENGE, 8, bytes(counter, 3), l->order->route.ssd_aid);
    }
    run();
    EACH(l) end_cmac(l, &l->enc, l->e->challenge, 8);
    derive_all(count, 1, DERIVE_S_ENC, 16, offsetof(engine, s_enc));
    derive_all(count, 0, DERIVE_S_MAC, 16, offsetof(engine, s_mac));
    EACH(l) {
        expand(&l->enc, l->e->s_enc);
        expand(&l->mac, l->e->s_mac);
        begin_subkeys(&l->mac);
    }
    run();
    EACH(l) end_subkeys(&l->mac);
    derive_all(count, 0, HOST_CRYPTOGRAM, 8, offsetof(engine, row));
    EACH(l) {
        uint8_t *header = l->authenticate + BLOCK;
        memcpy(header, (uint8_t[]){0x84, 0x82, (uint8_t)l->order->route.level, 0x00, 16}, HEADER);
        memcpy(header + HEADER, l->e->row, 8);
        l->blocks = blocks_of(l->order);
        if (l->blocks > most) most = l->blocks;
        fill_slots(l->e, l->order, l->blocks);
    }
    encrypt_all(count);
    mac_all(count, 0, 1);
    for (size_t number = 0; number <= most; number++) mac_all(count, number, 0);
    EACH(l) {
        writer w = {.e = l->e, .form = FORM_COMMANDS, .out = outs[l - lanes]};
        walk(&w, l->order, l->authenticate + BLOCK);
    }
}

static double cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    static uint8_t keys[SIMS][40], package[PACKAGE], aid[10] = "JPKIapplet", scratch[8192], lane_out[LANES][8192];
    static script_order orders[SIMS];
    uint8_t *outs[LANES];
    size_t size;
    double seconds = argc > 1 ? atof(argv[1]) : 2, best[2] = {1e9, 1e9};
    engine *e = engine_new();
    IMB_ARCH arch;
    if (!e || !(manager = alloc_mb_mgr(0))) return 1;
    init_mb_mgr_auto(manager, &arch);
    srand(1);
    for (size_t i = 0; i < sizeof keys; i++) ((uint8_t *)keys)[i] = (uint8_t)rand();
    for (size_t i = 0; i < sizeof package; i++) package[i] = (uint8_t)rand();
    for (int i = 0; i < SIMS; i++)
        orders[i] = (script_order){
            .route = {bytes(aid, 10), bytes(aid, 10), 0x30, 0x03, 8, 1},
            .package = bytes(package, sizeof package),
            .host_challenge = bytes(keys[i], 8),
            .sequence_counter = i + 1,
            .enc = bytes(keys[i] + 8, 16),
            .mac = bytes(keys[i] + 24, 16),
            .from_static = 1,
        };
    for (int i = 0; i < LANES; i++) {
        outs[i] = lane_out[i];
        if (!(lanes[i].e = engine_new())) return 1;
    }
    for (int i = 0; i < SIMS; i += LANES) {
        render_lanes(orders + i, LANES, outs);
        for (int k = 0; k < LANES; k++) {
            if (script_size(&orders[i + k], FORM_COMMANDS, &size) ||
                script_render(e, &orders[i + k], FORM_COMMANDS, scratch) || memcmp(scratch, lane_out[k], size)) {
                fputs("the lanes and the engine differ\n", stderr);
                return 1;
            }
        }
    }
    for (double start = cpu(); cpu() - start < seconds;) {
        double t = cpu();
        for (int i = 0; i < SIMS; i += LANES) {
            for (int k = 0; k < LANES; k++)
                if (script_size(&orders[i + k], FORM_COMMANDS, &size)) return 1;
            render_lanes(orders + i, LANES, outs);
        }
        t = cpu() - t;
        if (t < best[0]) best[0] = t;
        t = cpu();
        for (int i = 0; i < SIMS; i++)
            if (script_size(&orders[i], FORM_COMMANDS, &size) || script_render(e, &orders[i], FORM_COMMANDS, scratch))
                return 1;
        t = cpu() - t;
        if (t < best[1]) best[1] = t;
    }
    printf("%.0f %.0f\n", SIMS / best[0], SIMS / best[1]);
    return 0;
}
