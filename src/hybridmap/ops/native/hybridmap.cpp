// The selective scan and the causal convolution for CPUs, forward and backward, and operators on point clouds, behind a plain C
// ABI.
//
// One vector holds W neighbouring channels; the N states of a channel are N vectors. So nothing is summed across a vector
// but dB and dC, and any N works. Channels that do not fill a vector take the same code with partial loads.
//
//     task = (slot: a range of samples, strip: a range of channels)          tasks run in parallel
//       for each sample, for each direction:
//         for each chunk of T tokens, in scan order (backward: from the last chunk):
//           for each block of W channels:
//             pass 1   delta, delta x, D x                 long-latency maths, pipelined over tokens
//             pass 2   the recurrence, G states at a time  in registers; backward: recomputed, then swept back
//             pass 3   add directions, gate, scale, store
//
// Slots and strips depend on the shape alone, and every sum has a fixed order: results are the same bits for any number of
// threads. Sums over tasks are left to the caller, which gets one partial result per slot (dA, dD, dbias, dw, db) or per
// strip (dB, dC). No OpenMP, no libstdc++, no pool of its own: the caller hands the *_range functions to its thread pool.
//
// Built once per instruction set with W = its floats per register. Without -ffast-math: NaN and infinity must get through.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef W
#define W 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float V __attribute__((vector_size(W * 4)));
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef uint32_t VU __attribute__((vector_size(W * 4)));
typedef uint16_t VH __attribute__((vector_size(W * 2)));

constexpr int T = 16;                 // tokens per chunk: between two kept states
constexpr int HELD = W == 16 ? 8 : 4; // states at a time on the way forward: what the registers hold
constexpr int G = 4;                  // states at a time on the way back
constexpr int ABREAST = W == 16 ? 1 : 4;   // exponentials side by side on the way forward; AVX-512 has registers enough to overlap them
constexpr int TOGETHER = 16;          // channels whose kept states lie together
constexpr int AHEAD = 48;             // channels from what is computed to what is fetched
constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;

// ---------------------------------------------------------------- numbers

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

template <class To, class From> INLINE To bits_of(From from) { To to; memcpy(&to, &from, sizeof to); return to; }

INLINE V splat(float a) { return a - V{}; }

INLINE V widen(V v, float) { return v; }
INLINE V widen(VH h, bf16) { return bits_of<V>(__builtin_convertvector(h, VU) << 16); }
INLINE V widen(VH h, fp16) {
    VU u = __builtin_convertvector(h, VU), size = (u & 0x7fffu) << 13;
    VU finite = bits_of<VU>(bits_of<V>(size) * 0x1p112f);              // exact, subnormal numbers included
    VU special = bits_of<VU>((u & 0x7c00u) == 0x7c00u);               // infinity and NaN
    return bits_of<V>((special & (size | 0x7f800000u)) | (~special & finite) | ((u & 0x8000u) << 16));
}

INLINE V narrow(V v, float) { return v; }
INLINE VH narrow(V v, bf16) {
    VU u = bits_of<VU>(v), nan = bits_of<VU>(v != v);
    VU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return __builtin_convertvector((nan & ((u >> 16) | 0x40u)) | (~nan & rounded), VH);
}
INLINE VH narrow(V v, fp16) {                                          // round to nearest even
    VU u = bits_of<VU>(v), sign = u & 0x80000000u, size = u ^ sign;
    VU nan = bits_of<VU>(size > 0x7f800000u), large = bits_of<VU>(size >= 0x47800000u), small = bits_of<VU>(size < 0x38800000u);
    VU subnormal = bits_of<VU>(bits_of<V>(size) + 0.5f) - 0x3f000000u;  // the addition shifts and rounds
    VU normal = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
    VU half = (small & subnormal) | (~small & normal);
    half = (large & 0x7c00u) | (~large & half);
    half = (nan & 0x7e00u) | (~nan & half);
    return __builtin_convertvector(half | (sign >> 16), VH);
}

template <class S> struct Packed { typedef VH type; };
template <> struct Packed<float> { typedef V type; };

// k: the channels of this block, W but for the last one
template <class S> INLINE V load(const S* p, int k) {
    typename Packed<S>::type v = {};
    if (k == W) memcpy(&v, p, sizeof v);
    else memcpy(&v, p, k * sizeof(S));
    return widen(v, S{});
}
template <class S> INLINE void store(S* p, V value, int k) {
    auto v = narrow(value, S{});
    if (k == W) memcpy(p, &v, sizeof v);
    else memcpy(p, &v, k * sizeof(S));
}
INLINE V get(const float* p) { return load(p, W); }
INLINE void put(float* p, V v) { store(p, v, W); }

// Asks for what a few blocks later will be read or written; once per line of the cache.
template <class S> INLINE void fetch(const S* p) {
    if (((uintptr_t)p & 63) < W * sizeof(S)) __builtin_prefetch(p + AHEAD);
}

INLINE float one(const float* p) { return *p; }
template <class S> INLINE float one(const S* p) { VH h = {}; h[0] = p->bits; return widen(h, S{})[0]; }

INLINE int block_width(int64_t width, int64_t c) { return (int)(width - c < W ? width - c : W); }

typedef float Four __attribute__((vector_size(16)));
INLINE Four four(const float* p) { Four v; memcpy(&v, p, sizeof v); return v; }
INLINE float sum(const float* p) {                                     // of W, as four sums side by side and then in pairs
    Four total = {};
    for (int k = 0; k < W; k += 4) total += four(p + k);
    return (total[0] + total[2]) + (total[1] + total[3]);
}

INLINE V magnitude(V x) { return bits_of<V>(bits_of<VU>(x) & 0x7fffffffu); }

// 2^(a b) = 2^whole p(fraction); p is the polynomial of degree 5 that is exact at 0 and has the least largest relative error for
// fractions in [-1/2, 1/2], 9e-8 (found by Lawson's iteration). AVX-512 has instructions for what is around it, and for most of
// a division; its split rounds down, so that 1/2 is added first and p moved by as much.
//     exponent: what stands for a b; split: it becomes the fraction, what is returned tells `scaled` the rest
#if defined(__AVX512F__) && W == 16
constexpr float EXP2[] = {1.326472731e-03f, 6.355330814e-03f, 3.948049247e-02f, 1.698105931e-01f, 4.901338220e-01f, 7.071067095e-01f};
INLINE V exponent(V a, V b) { return a * b + 0.5f; }
INLINE V split(V& x) {
    V whole = x;
    x = (V)_mm512_reduce_ps((__m512)x, 1);                               // x - floor(x)
    return whole;
}
INLINE V scaled(V p, V whole) { return (V)_mm512_scalef_ps((__m512)p, (__m512)whole); }   // p * 2^floor(whole)
INLINE V inverse(V x) {
    x = (V)_mm512_min_ps((__m512)splat(0x1p126f), (__m512)x);            // infinity would become NaN below
    V r = (V)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
}
#else
#if defined(__AVX__) && W == 8                                           // a comparison would take two instructions
INLINE V clamp(V x) { return __builtin_ia32_minps256(splat(128.0f), __builtin_ia32_maxps256(splat(-127.0f), x)); }
#else
INLINE V clamp(V x) { return x < -127.0f ? splat(-127.0f) : x > 128.0f ? splat(128.0f) : x; }
#endif
constexpr float EXP2[] = {1.326472720e-03f, 9.671512640e-03f, 5.550733743e-02f, 2.402224209e-01f, 6.931469776e-01f, 1.0f};
INLINE V exponent(V a, V b) { return a * b; }
INLINE V split(V& x) {
    constexpr float magic = 12582912.0f + 127.0f;                      // 1.5 * 2^23: the biased exponent is in the low bits
    x = clamp(x);
    V shifted = x + magic;
    x -= shifted - magic;
    return shifted;
}
INLINE V scaled(V p, V whole) { return p * bits_of<V>(bits_of<VI>(whole) << 23); }
INLINE V inverse(V x) { return 1.0f / x; }
#endif

// 2^(a b) of K vectors that hold exponents, step by step together, since the steps of one wait for each other: to 2e-7; NaN gets
// through. With AVX-512 to where float32 ends, else exactly 0 from about -126.5 down and infinity from about 127.5 up.
template <int K> INLINE void exp2s(V (&x)[K]) {
    V whole[K], p[K];
    for (int i = 0; i < K; i++) whole[i] = split(x[i]), p[i] = splat(EXP2[0]);
    for (int n = 1; n < 6; n++)
        for (int i = 0; i < K; i++) p[i] = p[i] * x[i] + EXP2[n];
    for (int i = 0; i < K; i++) x[i] = scaled(p[i], whole[i]);
}
INLINE V expv(V x) {
    V one[1] = {exponent(x, splat(LOG2E))};
    exp2s(one);
    return one[0];
}

INLINE V sigmoid(V x) { return inverse(1.0f + expv(-x)); }

// max(x, 0) + log1p(exp(-|x|)), relatively exact for very negative x; slope is its derivative, the sigmoid
INLINE V softplus(V x, V& slope) {
    V u = expv(-magnitude(x)), half = inverse(1.0f + u);
    slope = x < 0.0f ? u * half : half;
    V s = u * inverse(2.0f + u), q = s * s;                                   // log1p(u) = 2 artanh(s), s in [0, 1/3]
    V p = q * (1.0f / 13) + (1.0f / 11);
    p = p * q + (1.0f / 9);
    p = p * q + (1.0f / 7);
    p = p * q + (1.0f / 5);
    p = p * q + (1.0f / 3);
    p = p * q + 1.0f;
    return (x > 0.0f ? x : V{}) + 2.0f * s * p;
}

// ---------------------------------------------------------------- selective scan

// Last strides are 1; *_b and *_t are the strides of samples and tokens, in elements.
struct Direction {
    const void *x, *dt, *B, *C;                                        // (batch, L, E) and (batch, L, N)
    const float *A, *D, *bias;                                         // (N, E) times log2(e); (E) or null
    const float* start;                                                // (batch, N, E) or null: the state before the scan
    float* last;                                                       // (batch, N, E) or null: the state after it
    void *dx, *ddt;                                                    // (batch, L, E), contiguous
    float *dB, *dC;                                                    // (strips, batch, L, N)
    float *dA, *dD, *dbias;                                            // (slots, N, E), (slots, E), (slots, E)
    const float* dlast;                                                // (batch, N, E) or null
    float* dstart;                                                     // (batch, N, E) or null
    int64_t x_b, x_t, dt_b, dt_t, B_b, B_t, C_b, C_t, reverse;
};

struct Scan {
    int64_t batch, length, channels, states, directions, softplus, dtype;   // dtype: 0 float32, 1 bfloat16, 2 float16
    int64_t slots, strips, strip;                                      // strip: channels per strip, a multiple of W
    const void *z, *dout;                                              // (batch, L, E); z may be null
    void *out, *dz;                                                    // (batch, L, E), out contiguous
    float* kept;                                                       // (chunks, directions, batch, blocks, N, TOGETHER) or null
    int64_t z_b, z_t, dout_b, dout_t, dz_b, dz_t;
    double scale;
    int64_t failed;                                                    // set when memory ran out
    Direction direction[2];
};

// What one (sample, direction, chunk) is about.
struct Chunk {
    const Scan& scan;
    const Direction& d;
    int64_t b, first;                                                  // sample; first token, counted in scan order
    int m, which;                                                      // tokens of this chunk; number of the direction
    const float *B, *C;                                                // (m, N), in scan order
    float* others;                                                     // (L, strip): y of the direction before
    int64_t c0;                                                        // first channel of the strip

    int64_t token(int j) const { int64_t i = first + j; return d.reverse ? scan.length - 1 - i : i; }
    template <class S> const S* x(int64_t t, int64_t c) const { return (const S*)d.x + b * d.x_b + t * d.x_t + c; }
    template <class S> const S* dt(int64_t t, int64_t c) const { return (const S*)d.dt + b * d.dt_b + t * d.dt_t + c; }
    template <class S> const S* z(int64_t t, int64_t c) const { return (const S*)scan.z + b * scan.z_b + t * scan.z_t + c; }
    template <class S> const S* dout(int64_t t, int64_t c) const { return (const S*)scan.dout + b * scan.dout_b + t * scan.dout_t + c; }
    int64_t at(int64_t t, int64_t c) const { return (b * scan.length + t) * scan.channels + c; }
    float* other(int64_t t, int64_t c) const { return others + t * scan.strip + c - c0; }
    float* kept(int64_t c) const {                                     // (N, TOGETHER), from channel c on
        const int64_t blocks = (scan.channels + TOGETHER - 1) / TOGETHER, sample = ((first / T) * scan.directions + which) * scan.batch + b;
        return scan.kept + (sample * blocks + c / TOGETHER) * scan.states * TOGETHER + c % TOGETHER;
    }
    bool last_direction() const { return which == scan.directions - 1; }
};

// The recurrence of states n .. n + K - 1 over a chunk; h: (N, W).
template <int K>
INLINE void run_states(const Chunk& u, int64_t n, int64_t c, int k, const V* delta, const V* dx, V* y, float* h) {
    const int64_t N = u.scan.states, E = u.scan.channels;
    constexpr int P = K < ABREAST ? K : ABREAST;
    V A[K], s[K];
    for (int i = 0; i < K; i++) A[i] = load(u.d.A + (n + i) * E + c, k), s[i] = get(h + (n + i) * W);
    for (int j = 0; j < u.m; j++) {
        V sum[P] = {};
#pragma GCC unroll 16
        for (int i = 0; i < K; i += P) {
            V a[P];
            for (int p = 0; p < P; p++) a[p] = exponent(delta[j], A[i + p]);
            exp2s(a);
            for (int p = 0; p < P; p++) {
                s[i + p] = a[p] * s[i + p] + dx[j] * u.B[j * N + n + i + p];
                sum[p] += s[i + p] * u.C[j * N + n + i + p];
            }
        }
        for (int p = 0; p < P; p++) y[j] += sum[p];
    }
    for (int i = 0; i < K; i++) put(h + (n + i) * W, s[i]);
}

// All states of a chunk; not inlined, so that it is compiled once for all dtypes.
static __attribute__((noinline)) void run(const Chunk& u, int64_t c, int k, const V* delta, const V* dx, V* y, float* h) {
    int64_t n = 0;
    for (; n + HELD <= u.scan.states; n += HELD) run_states<HELD>(u, n, c, k, delta, dx, y, h);
    for (; n < u.scan.states; n++) run_states<1>(u, n, c, k, delta, dx, y, h);
}

template <class S> static void forward_block(const Chunk& u, int64_t c, int k, float* h) {
    const Scan& scan = u.scan;
    const int64_t N = scan.states, E = scan.channels;
    if (scan.kept)
        for (int64_t n = 0; n < N; n++) put(u.kept(c) + n * TOGETHER, get(h + n * W));
    const V bias = u.d.bias ? load(u.d.bias + c, k) : V{}, D = u.d.D ? load(u.d.D + c, k) : V{};
    V delta[T], dx[T], y[T], slope;
    for (int j = 0; j < u.m; j++) {
        const int64_t t = u.token(j);
        V raw = load(u.dt<S>(t, c), k) + bias, x = load(u.x<S>(t, c), k);
        delta[j] = scan.softplus ? softplus(raw, slope) : raw;
        dx[j] = delta[j] * x;
        y[j] = u.d.D ? D * x : V{};
        fetch(u.x<S>(t, c));
        fetch(u.dt<S>(t, c));
        if (scan.z) fetch(u.z<S>(t, c));
        fetch((S*)scan.out + u.at(t, c));
    }
    run(u, c, k, delta, dx, y, h);
    for (int j = 0; j < u.m; j++) {
        const int64_t t = u.token(j);
        V total = u.which ? y[j] + get(u.other(t, c)) : y[j];
        if (!u.last_direction()) {
            put(u.other(t, c), total);
            continue;
        }
        total *= (float)scan.scale;
        if (scan.z) {
            V z = load(u.z<S>(t, c), k);
            total *= z * sigmoid(z);
        }
        store((S*)scan.out + u.at(t, c), total, k);
    }
}

// States n .. n + K - 1 of a chunk: recomputed from its kept state, then swept back. g, dA: (N, W); dB, dC: (m, N, W).
template <int K>
INLINE void sweep_states(const Chunk& u, int64_t n, int64_t c, int k, const V* delta, const V* dx, const V* gy, V* y, V* s,
                         V* q, float* g, float* dA, float* dB, float* dC) {
    const int64_t N = u.scan.states, E = u.scan.channels;
    const float *B = u.B, *C = u.C;
    V A[K], h[T + 1][K], a[T][K], state[K], carried[K], sum[K];
    for (int i = 0; i < K; i++) {
        A[i] = load(u.d.A + (n + i) * E + c, k), h[0][i] = state[i] = get(u.kept(c) + (n + i) * TOGETHER);
        carried[i] = get(g + (n + i) * W), sum[i] = get(dA + (n + i) * W);
    }
    for (int j = 0; j < u.m; j++) {
        V total = y[j];
        for (int i = 0; i < K; i++) a[j][i] = exponent(delta[j], A[i]);
        exp2s(a[j]);
        for (int i = 0; i < K; i++) {
            state[i] = a[j][i] * state[i] + dx[j] * B[j * N + n + i];
            total += state[i] * C[j * N + n + i];
            h[j + 1][i] = state[i];
        }
        y[j] = total;
    }
    for (int j = u.m - 1; j >= 0; j--) {
        const V step = delta[j], in = dx[j], out = gy[j];
        V to_x = s[j], to_delta = q[j];
        for (int i = 0; i < K; i++) {
            const int64_t at = j * N + n + i;
            V dh = carried[i] + out * C[at];
            put(dC + at * W, get(dC + at * W) + out * h[j + 1][i]);
            put(dB + at * W, get(dB + at * W) + dh * in);
            to_x += dh * B[at];
            carried[i] = dh * a[j][i];
            V r = carried[i] * h[j][i];
            to_delta += r * A[i];
            sum[i] += r * step;
        }
        s[j] = to_x, q[j] = to_delta;
    }
    for (int i = 0; i < K; i++) put(g + (n + i) * W, carried[i]), put(dA + (n + i) * W, sum[i]);
}

static __attribute__((noinline)) void sweep(const Chunk& u, int64_t c, int k, const V* delta, const V* dx, const V* gy, V* y, V* s,
                                            V* q, float* g, float* dA, float* dB, float* dC) {
    int64_t n = 0;
    for (; n + G <= u.scan.states; n += G) sweep_states<G>(u, n, c, k, delta, dx, gy, y, s, q, g, dA, dB, dC);
    for (; n < u.scan.states; n++) sweep_states<1>(u, n, c, k, delta, dx, gy, y, s, q, g, dA, dB, dC);
}

template <class S>
static void backward_block(const Chunk& u, int64_t c, int k, float* g, float* dA, float* dD, float* dbias, float* dB, float* dC) {
    const Scan& scan = u.scan;
    const V bias = u.d.bias ? load(u.d.bias + c, k) : V{}, D = u.d.D ? load(u.d.D + c, k) : V{};
    V x[T], delta[T], slope[T], dx[T], gy[T], to_z[T], y[T], s[T], q[T], to_D = V{}, to_bias = V{};
    for (int j = 0; j < u.m; j++) {
        const int64_t t = u.token(j);
        V raw = load(u.dt<S>(t, c), k) + bias;
        x[j] = load(u.x<S>(t, c), k);
        slope[j] = splat(1.0f);
        delta[j] = scan.softplus ? softplus(raw, slope[j]) : raw;
        dx[j] = delta[j] * x[j];
        gy[j] = load(u.dout<S>(t, c), k) * (float)scan.scale;
        if (scan.z) {
            V z = load(u.z<S>(t, c), k), sg = sigmoid(z), silu = z * sg;
            to_z[j] = gy[j] * (sg + silu * (1.0f - sg));
            gy[j] *= silu;
        }
        to_D += gy[j] * x[j];
        y[j] = u.d.D ? D * x[j] : V{};
        s[j] = V{}, q[j] = V{};
        fetch(u.x<S>(t, c));
        fetch(u.dt<S>(t, c));
        fetch(u.dout<S>(t, c));
        if (scan.z) fetch(u.z<S>(t, c));
        fetch((S*)u.d.dx + u.at(t, c));
        fetch((S*)u.d.ddt + u.at(t, c));
        if (scan.z) fetch((S*)scan.dz + u.b * scan.dz_b + t * scan.dz_t + c);
    }
    sweep(u, c, k, delta, dx, gy, y, s, q, g, dA, dB, dC);
    for (int j = 0; j < u.m; j++) {
        const int64_t t = u.token(j);
        V ddt = (s[j] * x[j] + q[j] * LN2) * slope[j];
        to_bias += ddt;
        store((S*)u.d.ddt + u.at(t, c), ddt, k);
        store((S*)u.d.dx + u.at(t, c), u.d.D ? s[j] * delta[j] + D * gy[j] : s[j] * delta[j], k);
        if (!scan.z) continue;
        V total = u.which ? y[j] + get(u.other(t, c)) : y[j];
        if (!u.last_direction()) {
            put(u.other(t, c), total);
            continue;
        }
        store((S*)scan.dz + u.b * scan.dz_b + t * scan.dz_t + c, to_z[j] * total, k);
    }
    put(dD, get(dD) + to_D);
    put(dbias, get(dbias) + to_bias);
}

// Copy a strip's (rows, channels) vectors between block order, (blocks, rows, W), and memory, (rows, E).
INLINE void unpack(const float* blocks, float* memory, int64_t rows, int64_t width, int64_t E) {
    for (int64_t c = 0; c < width; c += W)
        for (int64_t n = 0; n < rows; n++)
            memcpy(memory + n * E + c, blocks + (c * rows) + n * W, block_width(width, c) * sizeof(float));
}
INLINE void pack(const float* memory, float* blocks, int64_t rows, int64_t width, int64_t E) {
    memset(blocks, 0, (width + W - 1) / W * W * rows * sizeof(float));
    if (!memory) return;
    for (int64_t c = 0; c < width; c += W)
        for (int64_t n = 0; n < rows; n++)
            memcpy(blocks + (c * rows) + n * W, memory + n * E + c, block_width(width, c) * sizeof(float));
}

// One task's memory, reused from sample to sample.
struct Scratch {
    float *memory, *B, *C, *others, *state, *dA[2], *dD[2], *dbias[2], *dB, *dC;
    explicit Scratch(const Scan& s, bool backward) {
        const int64_t N = s.states, wide = backward ? s.directions : 0, lanes = backward ? T * N * W : 0;
        const int64_t tokens = (s.length * N + W - 1) / W * W, per_direction = s.strip * (N + 2);
        const int64_t floats = 2 * lanes + s.strip * N + wide * per_direction + s.length * s.strip + 2 * tokens;
        memory = (float*)aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
        if (!memory) return;
        dB = memory, dC = dB + lanes, state = dC + lanes;
        float* p = state + s.strip * N;
        for (int64_t w = 0; w < wide; w++, p += per_direction) dA[w] = p, dD[w] = p + s.strip * N, dbias[w] = dD[w] + s.strip;
        others = p, B = others + s.length * s.strip, C = B + tokens;
        if (wide) memset(dA[0], 0, wide * per_direction * sizeof(float));
    }
    ~Scratch() { free(memory); }
};

template <class S> static void read_tokens(const Scan& s, const Direction& d, int64_t b, Scratch& w) {
    for (int64_t i = 0; i < s.length; i++) {
        const int64_t t = d.reverse ? s.length - 1 - i : i;
        const S *B = (const S*)d.B + b * d.B_b + t * d.B_t, *C = (const S*)d.C + b * d.C_b + t * d.C_t;
        for (int64_t n = 0; n < s.states; n++) w.B[i * s.states + n] = one(B + n), w.C[i * s.states + n] = one(C + n);
    }
}

INLINE int chunk_tokens(const Scan& s, int64_t first) { return (int)(s.length - first < T ? s.length - first : T); }

template <class S> static void forward_task(const Scan& s, int64_t slot, int64_t strip, Scratch& w) {
    const int64_t N = s.states, E = s.channels, c0 = strip * s.strip, width = E - c0 < s.strip ? E - c0 : s.strip;
    for (int64_t b = s.batch * slot / s.slots; b < s.batch * (slot + 1) / s.slots; b++)
        for (int which = 0; which < s.directions; which++) {
            const Direction& d = s.direction[which];
            read_tokens<S>(s, d, b, w);
            pack(d.start ? d.start + b * N * E + c0 : nullptr, w.state, N, width, E);
            for (int64_t first = 0; first < s.length; first += T) {
                Chunk u{s, d, b, first, chunk_tokens(s, first), which, w.B + first * N, w.C + first * N, w.others, c0};
                for (int64_t c = 0; c < width; c += W) forward_block<S>(u, c0 + c, block_width(width, c), w.state + c * N);
            }
            if (d.last) unpack(w.state, d.last + b * N * E + c0, N, width, E);
        }
}

template <class S> static void backward_task(const Scan& s, int64_t slot, int64_t strip, Scratch& w) {
    const int64_t N = s.states, E = s.channels, c0 = strip * s.strip, width = E - c0 < s.strip ? E - c0 : s.strip;
    for (int64_t b = s.batch * slot / s.slots; b < s.batch * (slot + 1) / s.slots; b++)
        for (int which = 0; which < s.directions; which++) {
            const Direction& d = s.direction[which];
            read_tokens<S>(s, d, b, w);
            pack(d.dlast ? d.dlast + b * N * E + c0 : nullptr, w.state, N, width, E);
            for (int64_t first = s.length ? (s.length - 1) / T * T : -1; first >= 0; first -= T) {
                Chunk u{s, d, b, first, chunk_tokens(s, first), which, w.B + first * N, w.C + first * N, w.others, c0};
                memset(w.dB, 0, (w.state - w.dB) * sizeof(float));
                for (int64_t c = 0; c < width; c += W) {
                    float *g = w.state + c * N, *dA = w.dA[which] + c * N, *dD = w.dD[which] + c, *db = w.dbias[which] + c;
                    backward_block<S>(u, c0 + c, block_width(width, c), g, dA, dD, db, w.dB, w.dC);
                }
                for (int j = 0; j < u.m; j++)
                    for (int64_t n = 0; n < N; n++) {
                        const int64_t to = ((strip * s.batch + b) * s.length + u.token(j)) * N + n, from = (j * N + n) * W;
                        d.dB[to] = sum(w.dB + from), d.dC[to] = sum(w.dC + from);
                    }
            }
            if (d.dstart) unpack(w.state, d.dstart + b * N * E + c0, N, width, E);
        }
    for (int which = 0; which < s.directions; which++) {
        const Direction& d = s.direction[which];
        unpack(w.dA[which], d.dA + slot * N * E + c0, N, width, E);
        memcpy(d.dD + slot * E + c0, w.dD[which], width * sizeof(float));
        memcpy(d.dbias + slot * E + c0, w.dbias[which], width * sizeof(float));
    }
}

template <bool Backward> static void scan_tasks(int64_t begin, int64_t end, Scan& s) {
    Scratch scratch(s, Backward);
    if (!scratch.memory) {
        s.failed = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        const int64_t slot = task / s.strips, strip = task % s.strips;
        if (Backward && task > begin) memset(scratch.dA[0], 0, s.directions * s.strip * (s.states + 2) * sizeof(float));
        if (s.dtype == 0) Backward ? backward_task<float>(s, slot, strip, scratch) : forward_task<float>(s, slot, strip, scratch);
        if (s.dtype == 1) Backward ? backward_task<bf16>(s, slot, strip, scratch) : forward_task<bf16>(s, slot, strip, scratch);
        if (s.dtype == 2) Backward ? backward_task<fp16>(s, slot, strip, scratch) : forward_task<fp16>(s, slot, strip, scratch);
    }
}

// ---------------------------------------------------------------- causal convolution

struct Conv {
    int64_t batch, length, channels, taps, silu, reverse, dtype, add;  // add: to what is in dx already
    int64_t slots, strips, strip;                                      // strip: channels per strip, a multiple of W
    const void *x, *dout;                                              // (batch, L, E)
    const float *w, *bias;                                             // (taps, E); (E) or null
    void *out, *dx;                                                    // (batch, L, E), out contiguous
    float *dw, *db;                                                    // (slots, taps, E), (slots, E)
    int64_t x_b, x_t, dout_b, dout_t, dx_b, dx_t;
    int64_t failed;

    int64_t token(int64_t i) const { return reverse ? length - 1 - i : i; }
};

// to[j] += sum_i w[i] from[j + i] over the taps i = first .. first + K - 1; step: from one tap to the next
template <int K> INLINE void add_taps(const float* w, int64_t step, int k, const V* from, V* to, int m) {
    V tap[K];
    for (int i = 0; i < K; i++) tap[i] = load(w + i * step, k);
    for (int j = 0; j < m; j++) {
        V sum = to[j];
        for (int i = 0; i < K; i++) sum += tap[i] * from[j + i];
        to[j] = sum;
    }
}
static __attribute__((noinline)) void add_all_taps(const float* w, int64_t step, int64_t taps, int k, const V* from, V* to, int m) {
    int64_t i = 0;
    for (; i + 4 <= taps; i += 4) add_taps<4>(w + i * step, step, k, from + i, to, m);
    for (; i < taps; i++) add_taps<1>(w + i * step, step, k, from + i, to, m);
}

// dw[i] += sum_j du[j] x[j + i] over K taps; dw: (taps, W)
template <int K> INLINE void sum_taps(float* dw, const V* du, const V* x, int m) {
    V sum[K];
    for (int i = 0; i < K; i++) sum[i] = get(dw + i * W);
    for (int j = 0; j < m; j++)
        for (int i = 0; i < K; i++) sum[i] += du[j] * x[j + i];
    for (int i = 0; i < K; i++) put(dw + i * W, sum[i]);
}

static __attribute__((noinline)) void sum_all_taps(float* dw, int64_t taps, const V* du, const V* x, int m) {
    int64_t i = 0;
    for (; i + 4 <= taps; i += 4) sum_taps<4>(dw + i * W, du, x + i, m);
    for (; i < taps; i++) sum_taps<1>(dw + i * W, du, x + i, m);
}

// u of a chunk, and x of its tokens and of the taps - 1 before them, zero before the first
template <class S> INLINE void convolve(const Conv& s, int64_t b, int64_t first, int m, int64_t c, int k, V* x, V* u) {
    const int before = (int)s.taps - 1;
    for (int j = 0; j < m + before; j++) {
        const int64_t i = first + j - before;
        const S* from = (const S*)s.x + b * s.x_b + s.token(i) * s.x_t + c;
        x[j] = i < 0 ? V{} : load(from, k);
        if (i >= 0) fetch(from);
    }
    const V bias = s.bias ? load(s.bias + c, k) : V{};
    for (int j = 0; j < m; j++) u[j] = bias;
    add_all_taps(s.w + c, s.channels, s.taps, k, x, u, m);
}

template <class S> INLINE void conv_forward_block(const Conv& s, int64_t b, int64_t first, int m, int64_t c, int k, V* x) {
    V u[T];
    convolve<S>(s, b, first, m, c, k, x, u);
    for (int j = 0; j < m; j++)
        store((S*)s.out + (b * s.length + s.token(first + j)) * s.channels + c, s.silu ? u[j] * sigmoid(u[j]) : u[j], k);
}

// du: of this chunk and of the taps - 1 tokens behind it, which are in `behind` before and replaced by the first of this chunk
template <class S>
INLINE void conv_backward_block(const Conv& s, int64_t b, int64_t first, int m, int64_t c, int k, V* x, V* du, float* behind,
                                float* dw, float* db) {
    const int carried = (int)s.taps - 1;
    V u[T], dx[T], bias = get(db);
    convolve<S>(s, b, first, m, c, k, x, u);
    for (int j = 0; j < m; j++) {
        const S* from = (const S*)s.dout + b * s.dout_b + s.token(first + j) * s.dout_t + c;
        V sg = sigmoid(u[j]);
        du[j] = load(from, k);
        if (s.silu) du[j] *= sg + u[j] * sg * (1.0f - sg);
        bias += du[j];
        dx[j] = V{};
        fetch(from);
    }
    put(db, bias);
    for (int j = 0; j < carried; j++) du[m + j] = get(behind + j * W);
    for (int j = 0; j < carried; j++) put(behind + j * W, du[j]);
    add_all_taps(s.w + carried * s.channels + c, -s.channels, s.taps, k, du, dx, m);
    sum_all_taps(dw, s.taps, du, x, m);
    for (int j = 0; j < m; j++) {
        S* to = (S*)s.dx + b * s.dx_b + s.token(first + j) * s.dx_t + c;
        store(to, s.add ? load(to, k) + dx[j] : dx[j], k);
    }
}

template <bool Backward, class S> static void conv_task(Conv& s, int64_t slot, int64_t strip) {
    const int64_t E = s.channels, K = s.taps, c0 = strip * s.strip, width = E - c0 < s.strip ? E - c0 : s.strip;
    const int64_t window = (T + K) * W, blocks = s.strip / W, size = 2 * window + (Backward ? 2 * K * s.strip : 0);
    float* memory = (float*)aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64);
    if (!memory) {
        s.failed = 1;
        return;
    }
    V *x = (V*)memory, *du = (V*)(memory + window);
    float *dw = memory + 2 * window, *db = dw + K * s.strip, *behind = db + s.strip;   // each (blocks, taps, 1 or taps - 1, W)
    if (Backward) memset(dw, 0, (K + 1) * s.strip * sizeof(float));
    for (int64_t b = s.batch * slot / s.slots; b < s.batch * (slot + 1) / s.slots; b++) {
        if (Backward) memset(behind, 0, blocks * (K - 1) * W * sizeof(float));
        const int64_t chunks = (s.length + T - 1) / T;
        for (int64_t n = 0; n < chunks; n++) {
            const int64_t first = (Backward ? chunks - 1 - n : n) * T;
            const int m = (int)(s.length - first < T ? s.length - first : T);
            for (int64_t c = 0; c < width; c += W) {
                const int k = block_width(width, c);
                if (Backward)
                    conv_backward_block<S>(s, b, first, m, c0 + c, k, x, du, behind + c * (K - 1), dw + c * K, db + c);
                else
                    conv_forward_block<S>(s, b, first, m, c0 + c, k, x);
            }
        }
    }
    if (Backward) {
        unpack(dw, s.dw + slot * K * E + c0, K, width, E);
        memcpy(s.db + slot * E + c0, db, width * sizeof(float));
    }
    free(memory);
}

template <bool Backward> static void conv_tasks(int64_t begin, int64_t end, Conv& s) {
    for (int64_t task = begin; task < end; task++) {
        const int64_t slot = task / s.strips, strip = task % s.strips;
        if (s.dtype == 0) conv_task<Backward, float>(s, slot, strip);
        if (s.dtype == 1) conv_task<Backward, bf16>(s, slot, strip);
        if (s.dtype == 2) conv_task<Backward, fp16>(s, slot, strip);
    }
}

// ---------------------------------------------------------------- clouds of points

// A cloud is three planes of coordinates, (batch, 3, padded): `padded` is a multiple of W, and where there are no points there is
// NaN, which is neither less nor more than anything. Elsewhere it is finite, but for the results of overflow.
struct Planes { const float *x, *y, *z; };
INLINE Planes planes(const float* clouds, int64_t b, int64_t padded) {
    const float* x = clouds + 3 * b * padded;
    return {x, x + padded, x + 2 * padded};
}

// Keeps a product from being fused with the sum that it goes into.
INLINE V rounded(V v) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__SSE2__)
    __asm__("" : "+x"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#else
    __asm__("" : "+m"(v));
#endif
    return v;
}
// (x^2 + y^2) + z^2, each operation rounded: the same bits as in the formula, so that near ties fall the same way everywhere
INLINE V squared(V x, V y, V z) {
    V xx = rounded(x * x), yy = rounded(y * y), zz = rounded(z * z);
    return xx + yy + zz;
}
INLINE V distance(const Planes& p, int64_t i, V x, V y, V z) { return squared(get(p.x + i) - x, get(p.y + i) - y, get(p.z + i) - z); }

// One bit per lane where a <= b, a < b
#if defined(__AVX512F__) && W == 16
INLINE uint32_t at_most(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
INLINE uint32_t below(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
#elif defined(__AVX__) && W == 8
INLINE uint32_t at_most(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LE_OQ)); }
INLINE uint32_t below(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ)); }
#elif defined(__SSE2__) && W == 4
INLINE uint32_t at_most(V a, V b) { return _mm_movemask_ps(_mm_cmple_ps((__m128)a, (__m128)b)); }
INLINE uint32_t below(V a, V b) { return _mm_movemask_ps(_mm_cmplt_ps((__m128)a, (__m128)b)); }
#else
INLINE uint32_t lanes(VI true_or_false) {
    uint32_t bits = 0;
    for (int k = 0; k < W; k++) bits |= (uint32_t)(true_or_false[k] & 1) << k;
    return bits;
}
INLINE uint32_t at_most(V a, V b) { return lanes(a <= b); }
INLINE uint32_t below(V a, V b) { return lanes(a < b); }
#endif

// ---- farthest points: each cloud a task

struct Fps {
    int64_t batch, padded, count, skip_origin;
    const float* points;                                               // planes
    float* nearest;                                                    // (batch, padded): to the points chosen so far
    int64_t* chosen;                                                   // (batch, count)
    int64_t failed;
};

static void fps_task(const Fps& s, int64_t b) {
    const Planes p = planes(s.points, b, s.padded);
    float* nearest = s.nearest + b * s.padded;
    int64_t* chosen = s.chosen + b * s.count;
    for (int64_t i = 0; i < s.padded; i += W) {
        V far = splat(1e10f), origin = distance(p, i, V{}, V{}, V{});
        if (s.skip_origin) far = origin <= 1e-3f ? splat(-1.0f) : far; // nearer than anything
        put(nearest + i, origin == origin ? far : splat(-2.0f));
    }
    int64_t last = chosen[0] = 0;
    for (int64_t k = 1; k < s.count; k++) {
        const V x = splat(p.x[last]), y = splat(p.y[last]), z = splat(p.z[last]);
        V best = splat(-2.0f);
        VI where = {};
        for (int64_t i = 0; i < s.padded; i += W) {
            V d = distance(p, i, x, y, z), far = get(nearest + i);
            far = d < far ? d : far;
            put(nearest + i, far);
            where = far > best ? (int32_t)i - VI{} : where;
            best = far > best ? far : best;
        }
        float most = -2.0f;
        last = 0;
        for (int j = 0; j < W; j++)                                    // of the lanes with the most, the first point
            if (best[j] > most || (best[j] == most && where[j] + j < last)) most = best[j], last = where[j] + j;
        chosen[k] = last;
    }
}

// ---- nearest neighbours: a strip of queries a task

struct Knn {
    int64_t padded, queries, k, strips, strip;
    const float *points, *query;                                       // planes; (batch, queries, 3)
    float* distance;                                                   // (batch, queries, k)
    int64_t* index;
    int64_t failed;
};

// A key is a distance and an index: numbers that are not negative have the order of their bits, equal ones that of their indices.
INLINE int64_t key_of(float distance, int32_t index) { return (int64_t)bits_of<int32_t>(distance) << 32 | index; }

constexpr int GROUPS = 4;                                              // sets of points per neighbour asked for
constexpr int RUN = 64;                                                // candidates that are sorted by counting

// A distance within which there are at least k points, and few more, if the least of each of `groups` sets of points is given
static float kth_of(const float* least, int64_t groups, int64_t k) {
    int32_t low = -1, high = 0x7f800000;                               // bits of numbers: too few up to low, enough up to high
    while (high - low > 1 << 18) {                                     // 3 %
        const int32_t middle = low + (high - low) / 2;
        const V value = splat(bits_of<float>(middle));
        int64_t within = 0;
        for (int64_t g = 0; g < groups; g += W) within += __builtin_popcount(at_most(get(least + g), value));
        if (within >= k) high = middle;
        else low = middle;
        if (within == k) break;
    }
    return bits_of<float>(high);
}

// Keys of n <= RUN candidates, ascending: each goes where there are as many before it. Candidates are in the order of their indices
// and may be read up to the next whole vector.
static void sort_run(const float* distance, const int32_t* index, int n, int64_t* keys) {
    for (int i = 0; i < n; i += W) {
        const V own = get(distance + i);
        VI before = {}, lane;
        for (int k = 0; k < W; k++) lane[k] = i + k;
        int j = 0;
        for (; j < i; j++) before -= (VI)(splat(distance[j]) <= own);
        for (; j < n && j < i + W; j++) {
            const V other = splat(distance[j]);
            before -= (VI)(other < own) | ((VI)(other == own) & (VI)(lane > j));
        }
        for (; j < n; j++) before -= (VI)(splat(distance[j]) < own);
        for (int k = 0; k < W && i + k < n; k++) keys[before[k]] = key_of(distance[i + k], index[i + k]);
    }
}

// Two ascending runs into one, of which the first `most` matter
static void merge(const int64_t* a, const int64_t* a_end, const int64_t* b, const int64_t* b_end, int64_t* to, int64_t most) {
    for (int64_t n = 0; n < most && (a < a_end || b < b_end); n++) {
        const bool first = b == b_end || (a < a_end && *a < *b);
        to[n] = first ? *a++ : *b++;
    }
}

struct KnnScratch {
    float *distances, *least, *near;                                   // (padded), (groups), and of candidates
    int32_t* index;                                                    // of candidates
    int64_t *keys, *merged;
    int64_t groups;
};

// The keys of the k nearest, ascending, are at what is returned; `found` of them, which is less than k only where there is NaN
static const int64_t* nearest_keys(const Knn& s, const Planes& p, V x, V y, V z, const KnnScratch& w, int64_t& found) {
    for (int64_t g = 0; g < w.groups; g += W) put(w.least + g, splat(__builtin_inff()));
    for (int64_t start = 0; start < s.padded; start += w.groups)       // neighbours in memory are in different groups
        for (int64_t g = 0; g < w.groups && start + g < s.padded; g += W) {
            V d = distance(p, start + g, x, y, z), m = get(w.least + g);
            put(w.distances + start + g, d);
            put(w.least + g, d < m ? d : m);
        }
    const V bound = splat(kth_of(w.least, w.groups, s.k));
    int64_t n = 0;
    for (int64_t i = 0; i < s.padded; i += W)
        for (uint32_t near = at_most(get(w.distances + i), bound); near; near &= near - 1, n++) {
            const int64_t j = i + __builtin_ctz(near);
            w.near[n] = w.distances[j], w.index[n] = (int32_t)j;
        }
    for (int64_t first = 0; first < n; first += RUN)
        sort_run(w.near + first, w.index + first, (int)(n - first < RUN ? n - first : RUN), w.keys + first);
    int64_t *from = w.keys, *to = w.merged;
    for (int64_t width = RUN; width < n; width *= 2) {
        for (int64_t first = 0; first < n; first += 2 * width) {
            const int64_t middle = first + width < n ? first + width : n, end = middle + width < n ? middle + width : n;
            merge(from + first, from + middle, from + middle, from + end, to + first, s.k);
        }
        int64_t* swapped = from;
        from = to, to = swapped;
    }
    found = n < s.k ? n : s.k;
    return from;
}

static void knn_task(const Knn& s, int64_t task, const KnnScratch& w) {
    const int64_t b = task / s.strips, first = task % s.strips * s.strip, end = first + s.strip < s.queries ? first + s.strip : s.queries;
    const Planes p = planes(s.points, b, s.padded);
    for (int64_t q = first; q < end; q++) {
        const float* query = s.query + 3 * (b * s.queries + q);
        int64_t found = 0, to = (b * s.queries + q) * s.k;
        const int64_t* keys = nearest_keys(s, p, splat(query[0]), splat(query[1]), splat(query[2]), w, found);
        for (int64_t n = 0; n < found; n++) s.distance[to + n] = bits_of<float>((int32_t)(keys[n] >> 32)), s.index[to + n] = keys[n] & 0xffffffff;
        for (int64_t n = found; n < s.k; n++) s.distance[to + n] = __builtin_nanf(""), s.index[to + n] = 0;
    }
}

static void knn_tasks(int64_t begin, int64_t end, Knn& s) {
    const int64_t least = 8 * W, wanted = (GROUPS * s.k + W - 1) / W * W, many = wanted > least ? wanted : least;
    const int64_t groups = many < s.padded ? many : s.padded, all = s.padded + W;
    const int64_t size = 2 * s.padded * sizeof(int64_t) + (groups + 3 * all) * sizeof(float);
    int64_t* memory = (int64_t*)aligned_alloc(64, (size + 63) / 64 * 64);
    if (!memory) {
        s.failed = 1;
        return;
    }
    float* floats = (float*)(memory + 2 * s.padded);
    const KnnScratch w = {floats, floats + 3 * all, floats + all, (int32_t*)(floats + 2 * all), memory, memory + s.padded, groups};
    for (int64_t task = begin; task < end; task++) knn_task(s, task, w);
    free(memory);
}

// ---- the first within a radius: a strip of centres a task

struct Ball {
    int64_t padded, queries, count, strips, strip;
    const float *points, *query;                                       // planes; (batch, queries, 3)
    int64_t* index;                                                    // (batch, queries, count)
    double squared_radius;
    int64_t failed;
};

static void ball_task(const Ball& s, int64_t task) {
    const int64_t b = task / s.strips, first = task % s.strips * s.strip, end = first + s.strip < s.queries ? first + s.strip : s.queries;
    const Planes p = planes(s.points, b, s.padded);
    const V within = splat((float)s.squared_radius);
    for (int64_t q = first; q < end; q++) {
        const float* query = s.query + 3 * (b * s.queries + q);
        const V x = splat(query[0]), y = splat(query[1]), z = splat(query[2]);
        int64_t *index = s.index + (b * s.queries + q) * s.count, held = 0;
        for (int64_t i = 0; i < s.padded && held < s.count; i += W)
            for (uint32_t near = below(distance(p, i, x, y, z), within); near && held < s.count; near &= near - 1)
                index[held++] = i + __builtin_ctz(near);
        for (const int64_t filler = held ? index[0] : 0; held < s.count; held++) index[held] = filler;
    }
}

// ---- the nearest of another cloud, one way: a strip of queries a task, one query per lane

struct Nearest {
    int64_t batch, queries, padded, points, points_padded, strips, strip;
    const float *query, *cloud;                                        // planes
    float* distance;                                                   // (batch, queries)
    int64_t* index;
    int64_t failed;
};

template <int K> INLINE void nearest_of(const Nearest& s, int64_t b, int64_t q, const Planes& from, const Planes& to) {
    V x[K], y[K], z[K], least[K];
    VI where[K];
    for (int i = 0; i < K; i++) {
        x[i] = get(from.x + q + i * W), y[i] = get(from.y + q + i * W), z[i] = get(from.z + q + i * W);
        least[i] = splat(__builtin_inff()), where[i] = VI{};
    }
    for (int32_t j = 0; j < s.points; j++) {
        const V px = splat(to.x[j]), py = splat(to.y[j]), pz = splat(to.z[j]);
        for (int i = 0; i < K; i++) {
            V d = squared(x[i] - px, y[i] - py, z[i] - pz);
            where[i] = d < least[i] ? j - VI{} : where[i];
            least[i] = d < least[i] ? d : least[i];
        }
    }
    for (int i = 0; i < K; i++) {
        const int64_t at = q + i * W, k = s.queries - at < W ? s.queries - at : W;
        if (k <= 0) break;
        store(s.distance + b * s.queries + at, least[i], (int)k);
        for (int64_t j = 0; j < k; j++) s.index[b * s.queries + at + j] = where[i][j];
    }
}

static void nearest_task(const Nearest& s, int64_t task) {
    const int64_t b = task / s.strips, first = task % s.strips * s.strip;
    const int64_t end = first + s.strip < s.padded ? first + s.strip : s.padded;
    const Planes from = planes(s.query, b, s.padded), to = planes(s.cloud, b, s.points_padded);
    int64_t q = first;
    for (; q + 2 * W <= end; q += 2 * W) nearest_of<2>(s, b, q, from, to);
    for (; q < end; q += W) nearest_of<1>(s, b, q, from, to);
}

// ---- gradients through the nearest pairs: each pair of clouds a task

struct Pairs {
    int64_t batch, a_points, b_points;
    const float *a, *b;                                                // (batch, points, 3)
    const int64_t *of_b, *of_a;                                        // (batch, a_points), (batch, b_points): the nearest of the other
    const float *to_b, *to_a;                                          // gradients of the squared distances
    float *da, *db;                                                    // (batch, points, 3)
    int64_t failed;
};

static void pull(int64_t n, const float* a, const float* b, const int64_t* of_b, const float* gradient, float* da, float* db) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t axis = 0; axis < 3; axis++) {
            const int64_t from = 3 * i + axis, to = 3 * of_b[i] + axis;
            const float slope = 2.0f * gradient[i] * (a[from] - b[to]);
            da[from] += slope, db[to] -= slope;
        }
}

static void pairs_task(const Pairs& s, int64_t n) {
    const int64_t A = s.a_points, B = s.b_points;
    const float *a = s.a + 3 * n * A, *b = s.b + 3 * n * B;
    float *da = s.da + 3 * n * A, *db = s.db + 3 * n * B;
    memset(da, 0, 3 * A * sizeof(float)), memset(db, 0, 3 * B * sizeof(float));
    pull(A, a, b, s.of_b + n * A, s.to_b + n * A, da, db);
    pull(B, b, a, s.of_a + n * B, s.to_a + n * B, db, da);
}

// ---------------------------------------------------------------- the C ABI: one task per number in [begin, end)

extern "C" {
int64_t hybridmap_chunk(void) { return T; }
int64_t hybridmap_lanes(void) { return W; }
void hybridmap_scan_forward(int64_t begin, int64_t end, void* scan) { scan_tasks<false>(begin, end, *(Scan*)scan); }
void hybridmap_scan_backward(int64_t begin, int64_t end, void* scan) { scan_tasks<true>(begin, end, *(Scan*)scan); }
void hybridmap_conv_forward(int64_t begin, int64_t end, void* conv) { conv_tasks<false>(begin, end, *(Conv*)conv); }
void hybridmap_conv_backward(int64_t begin, int64_t end, void* conv) { conv_tasks<true>(begin, end, *(Conv*)conv); }
void hybridmap_fps(int64_t begin, int64_t end, void* fps) {
    for (; begin < end; begin++) fps_task(*(Fps*)fps, begin);
}
void hybridmap_knn(int64_t begin, int64_t end, void* knn) { knn_tasks(begin, end, *(Knn*)knn); }
void hybridmap_ball_query(int64_t begin, int64_t end, void* ball) {
    for (; begin < end; begin++) ball_task(*(Ball*)ball, begin);
}
void hybridmap_nearest(int64_t begin, int64_t end, void* nearest) {
    for (; begin < end; begin++) nearest_task(*(Nearest*)nearest, begin);
}
void hybridmap_pairs(int64_t begin, int64_t end, void* pairs) {
    for (; begin < end; begin++) pairs_task(*(Pairs*)pairs, begin);
}
}
