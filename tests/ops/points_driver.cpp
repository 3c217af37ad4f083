// Runs every operator on point clouds of the compiled kernel at awkward sizes, with each tensor in a block of its own, for
// AddressSanitizer. Also with NaN, which a compiled graph does not keep out.
#include "hybridmap.cpp"
#include <math.h>
#include <stdio.h>

static float* floats(int64_t n, double value) {
    float* memory = (float*)malloc(n * sizeof(float) + !n);
    for (int64_t i = 0; i < n; i++) memory[i] = (float)(value * sin(1.0 + i));
    return memory;
}
static int64_t* integers(int64_t n) { return (int64_t*)malloc(n * sizeof(int64_t) + !n); }

static int64_t padded(int64_t n) { return (n + W - 1) / W * W; }
static float* clouds(int64_t batch, int64_t n, int bad) {
    float* memory = floats(batch * 3 * padded(n), 1);
    for (int64_t row = 0; row < 3 * batch; row++) {
        for (int64_t i = n; i < padded(n); i++) memory[row * padded(n) + i] = NAN;
        if (bad) memory[row * padded(n) + n / 2] = NAN;
    }
    return memory;
}

int main() {
    int runs = 0;
    const int64_t sizes[] = {1, 3, W, 2 * W + 1, 200}, B = 2, strip = 64;
    for (int bad = 0; bad < 2; bad++)
        for (int64_t N : sizes)
            for (int64_t M : sizes) {
                const int64_t strips = (M + strip - 1) / strip;
                const int64_t counts[] = {1, N / 2 + 1, N};
                for (int64_t k : counts) {
                    Fps f = {B, padded(N), k, bad, clouds(B, N, bad), floats(B * padded(N), 0), integers(B * k), 0};
                    hybridmap_fps(0, B, &f);
                    Knn n = {padded(N), M, k, strips, strip, clouds(B, N, bad), floats(B * M * 3, 1), floats(B * M * k, 0), integers(B * M * k), 0};
                    hybridmap_knn(0, B * strips, &n);
                    Ball b = {padded(N), M, k, strips, strip, clouds(B, N, bad), floats(B * M * 3, 1), integers(B * M * k), 0.3, 0};
                    hybridmap_ball_query(0, B * strips, &b);
                    for (int64_t i = 0; i < B * k; i++)
                        if (f.chosen[i] < 0 || f.chosen[i] >= N) return 3;
                    for (int64_t i = 0; i < B * M * k; i++)
                        if (n.index[i] < 0 || n.index[i] >= N || b.index[i] < 0 || b.index[i] >= N) return 3;
                    if (f.failed || n.failed || b.failed) return 2;
                    runs++;
                }
                float *points = clouds(B, N, bad), *others = clouds(B, M, bad);
                Nearest to = {B, M, padded(M), N, padded(N), strips, strip, others, points, floats(B * M, 0), integers(B * M), 0};
                hybridmap_nearest(0, B * strips, &to);
                const int64_t back = (N + strip - 1) / strip;
                Nearest from = {B, N, padded(N), M, padded(M), back, strip, points, others, floats(B * N, 0), integers(B * N), 0};
                hybridmap_nearest(0, B * back, &from);
                Pairs p = {B, N, M, floats(B * N * 3, 1), floats(B * M * 3, 1), from.index, to.index, floats(B * N, 1), floats(B * M, 1),
                           floats(B * N * 3, 0), floats(B * M * 3, 0), 0};
                hybridmap_pairs(0, B, &p);
                if (to.failed || from.failed || p.failed) return 2;
                runs++;
            }
    printf("%d runs\n", runs);
    return 0;
}
