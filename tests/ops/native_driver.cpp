// Runs every entry of the kernel on exactly sized heap blocks, for AddressSanitizer; prints how many runs there were.
#include "hybridmap.cpp"

#include <math.h>
#include <stdio.h>

static void* block(int64_t elements, int64_t size, double value) {
    char* memory = (char*)malloc(elements * size + !elements);
    for (int64_t i = 0; i < elements; i++) {
        float number = (float)(value * sin(1.0 + i));
        if (size == 4) memcpy(memory + i * 4, &number, 4);
        else memcpy(memory + i * 2, (char*)&number + 2, 2);
    }
    return memory;
}

int main() {
    int scans = 0, convolutions = 0;
    const int64_t lengths[] = {0, 1, 16, 37}, short_lengths[] = {1, 3, 20}, widths[] = {1, W + 3, 4 * W};
    for (int64_t dtype = 0; dtype < 2; dtype++)
        for (int64_t L : lengths)
            for (int64_t E : widths)
                for (int directions = 1; directions <= 2; directions++) {
                    const int64_t B = 2, N = 3, size = dtype ? 2 : 4, all = B * L * E, strip = 2 * W;
                    Scan s = {};
                    s.batch = B, s.length = L, s.channels = E, s.states = N, s.directions = directions, s.softplus = 1;
                    s.dtype = dtype, s.slots = 2, s.strip = strip, s.strips = (E + strip - 1) / strip, s.scale = 0.5;
                    s.z = block(all, size, 1), s.dout = block(all, size, 1), s.out = block(all, size, 0), s.dz = block(all, size, 0);
                    s.z_b = s.dout_b = s.dz_b = L * E, s.z_t = s.dout_t = s.dz_t = E;
                    s.kept = (float*)block((L + T - 1) / T * directions * B * ((E + TOGETHER - 1) / TOGETHER) * N * TOGETHER, 4, 0);
                    for (int g = 0; g < directions; g++) {
                        Direction& d = s.direction[g];
                        d.x = block(all, size, 1), d.dt = block(all, size, 1), d.B = block(B * L * N, size, 1), d.C = block(B * L * N, size, 1);
                        d.A = (float*)block(N * E, 4, -1), d.D = (float*)block(E, 4, 1), d.bias = (float*)block(E, 4, 1);
                        d.start = (float*)block(B * N * E, 4, 1), d.last = (float*)block(B * N * E, 4, 0);
                        d.dx = block(all, size, 0), d.ddt = block(all, size, 0);
                        d.dB = (float*)block(s.strips * B * L * N, 4, 0), d.dC = (float*)block(s.strips * B * L * N, 4, 0);
                        d.dA = (float*)block(s.slots * N * E, 4, 0), d.dD = (float*)block(s.slots * E, 4, 0);
                        d.dbias = (float*)block(s.slots * E, 4, 0), d.dlast = (float*)block(B * N * E, 4, 1);
                        d.dstart = (float*)block(B * N * E, 4, 0);
                        d.x_b = d.dt_b = L * E, d.x_t = d.dt_t = E, d.B_b = d.C_b = L * N, d.B_t = d.C_t = N, d.reverse = g;
                    }
                    hybridmap_scan_forward(0, s.slots * s.strips, &s);
                    hybridmap_scan_backward(0, s.slots * s.strips, &s);
                    if (s.failed) return 2;
                    scans++;
                }
    for (int64_t dtype = 0; dtype < 2; dtype++)
        for (int64_t L : short_lengths)
            for (int64_t E : widths)
                for (int64_t reverse = 0; reverse < 2; reverse++) {
                    const int64_t B = 3, size = dtype ? 2 : 4, all = B * L * E, K = 4;
                    Conv s = {};
                    s.batch = B, s.length = L, s.channels = E, s.taps = K, s.silu = 1, s.reverse = reverse, s.dtype = dtype, s.slots = 2;
                    s.strip = 3 * W, s.strips = (E + s.strip - 1) / s.strip, s.add = reverse;
                    s.x = block(all, size, 1), s.dout = block(all, size, 1), s.w = (float*)block(K * E, 4, 1), s.bias = (float*)block(E, 4, 1);
                    s.out = block(all, size, 0), s.dx = block(all, size, 1);
                    s.dw = (float*)block(s.slots * K * E, 4, 0), s.db = (float*)block(s.slots * E, 4, 0);
                    s.x_b = s.dout_b = s.dx_b = L * E, s.x_t = s.dout_t = s.dx_t = E;
                    hybridmap_conv_forward(0, s.slots * s.strips, &s);
                    hybridmap_conv_backward(0, s.slots * s.strips, &s);
                    if (s.failed) return 2;
                    convolutions++;
                }
    printf("%d scans, %d convolutions\n", scans, convolutions);
    return 0;
}
