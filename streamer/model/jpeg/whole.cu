// Is a JPEG (ITU-T T.81) a regular one, is it whole, and is it this picture that was decoded? The
// GPU's JPEG engine reports success whatever it is given, and leaves what it did not decode as it
// was. So the entropy-coded data are walked through here, code by code: a JPEG is whole if they
// hold every block, and nothing else. The brightness of the blocks at the left edge, by the file,
// is then compared with what was decoded.
//
// Regular is what nearly all encoders write: baseline, 8 bits, one scan, grey or YCbCr with chroma
// whole, halved across, or halved both ways. Anything else is left to the CPU.

#define LOOK 9 // bits that one look-up decodes; longer codes are rare
#define DC_BITS 11
#define AC_BITS 10
#define MOST_DC 2048 // of 8-bit samples
#define END 128      // what the end of a block moves by
#define STEP_BITS 31 // of a step: its number of bits
#define TOLERANCE 12 // levels between a block's brightness in the file and in the picture

#define INLINE __device__ __forceinline__ // what it reads and counts stays in registers

typedef unsigned char byte;
typedef unsigned long long u64;

struct File {
    long long begin;  // index of its first byte
    long long levels; // index of its first level: room for a row of blocks each
    int size;         // bytes
    int rows;         // pixels
};

struct Picture {
    long long pixels; // address of the first byte, RGB
    long long pitch;  // bytes from row to row
    int rows;
    int file; // its index
};

// What one code says: bits of code and value together, and how far the position in the block moves:
// past a run of zeros and a coefficient, or, at the end of the block, far beyond it. 0: no code.
typedef unsigned short Step;

struct Huffman {
    Step look[1 << LOOK];           // by the next bits; 0: a longer code, or none
    int last[17];                   // the largest code of each length; -1: none
    int first[17];                  // index of each length's first symbol, less its first code
    byte symbols[256];
    bool defined;

    // Bits of the value behind a DC code.
    __device__ int size_of(u64 bits) const {
        for (int length = 1; length <= 16; length++) {
            int code = (int)(bits >> (64 - length));
            if (code <= last[length]) return symbols[(first[length] + code) & 255];
        }
        return 0;
    }
};

// A DC code is one of an AC coefficient without zeros before it.
INLINE Step step_of(int symbol, int length) {
    int run = symbol >> 4, size = symbol & 15;
    int moves = symbol == 0 ? END : run + 1;
    return moves << 5 | (length + size);
}

struct Component {
    int id, across, down, quantization, dc, ac;
};

struct Bits {
    const byte *at, *end;
    u64 held; // from the top
    int count;
    bool marker; // at `at`: no more bits before it

    INLINE void fill() {
        while (count <= 32) {
            if (marker || end - at < 4) {
                if (!one()) return;
                continue;
            }
            unsigned a = at[0], b = at[1], c = at[2], d = at[3];
            if (a == 255 || b == 255 || c == 255 || d == 255) {
                if (!one()) return;
                continue;
            }
            held |= (u64)(a << 24 | b << 16 | c << 8 | d) << (32 - count);
            count += 32, at += 4;
        }
    }

    INLINE bool one() {
        if (marker || at >= end) return false;
        if (*at == 255) {
            if (end - at < 2 || at[1] != 0) {
                marker = true;
                return false;
            }
            at++;
            held |= (u64)255 << (56 - count);
        } else {
            held |= (u64)*at << (56 - count);
        }
        count += 8, at++;
        return true;
    }

    // The next step. Afterwards `count` is below 0 if there were not so many bits.
    INLINE int step(const Huffman &table) {
        int step = table.look[held >> (64 - LOOK)];
        if (!step) step = longer(table);
        held <<= step & STEP_BITS, count -= step & STEP_BITS;
        return step;
    }

    __device__ int longer(const Huffman &table) const {
        for (int length = LOOK + 1; length <= 16; length++) {
            int code = (int)(held >> (64 - length));
            if (code <= table.last[length]) {
                return step_of(table.symbols[(table.first[length] + code) & 255], length);
            }
        }
        return 0;
    }
};

INLINE int two(const byte *at) { return at[0] << 8 | at[1]; }

// `bits`: the most that a symbol may say.
__device__ bool define(Huffman *table, const byte *counts, const byte *symbols, int total,
                       int bits) {
    for (int i = 0; i < 1 << LOOK; i++) table->look[i] = 0;
    for (int i = 0; i < total; i++) {
        int run = symbols[i] >> 4, size = symbols[i] & 15;
        if (size > bits || (bits == DC_BITS && run)) return false;
        if (size == 0 && run != 0 && run != 15) return false;
        table->symbols[i] = symbols[i];
    }
    int code = 0, at = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        int many = counts[length - 1];
        table->first[length] = at - code;
        table->last[length] = many ? code + many - 1 : -1;
        if (many && code + many >= 1 << length) return false; // no code is all ones
        for (int i = 0; i < many && length <= LOOK; i++) {
            int spare = LOOK - length;
            for (int rest = 0; rest < 1 << spare; rest++) {
                table->look[(code + i) << spare | rest] = step_of(symbols[at + i], length);
            }
        }
        code += many, at += many;
    }
    return table->defined = true;
}

// Adds the difference of the DC coefficient to `level`.
INLINE bool block(Bits *bits, const Huffman &dc, const Huffman &ac, int *level) {
    bits->fill();
    u64 before = bits->held;
    int step = bits->step(dc), length = step & STEP_BITS;
    if (!step) return false;
    int size = dc.size_of(before);
    if (size) {
        int value = (int)(before >> (64 - length)) & ((1 << size) - 1);
        *level += value >> (size - 1) ? value : value - (1 << size) + 1;
    }
    int k = 0;
    while (k < 63) {
        bits->fill();
        step = bits->step(ac);
        if (!step) return false;
        k += step >> 5;
    }
    return bits->count >= 0 && (k == 63 || k >= END);
}

// How many rows of pixels, in eights, a row of MCUs has: 1 or 2; 0: not regular, or not whole.
__device__ int rows_of_mcu(const byte *data, const File &file, Huffman *tables, float *levels) {
    Component components[3];
    int size = file.size;
    int count = 0, height = 0, width = 0, interval = 0, adobe = -1, quantizations = 0, steps[4];
    bool jfif = false;
    const byte *at = data + 2, *end = data + size;
    for (int i = 0; i < 4; i++) tables[i].defined = false;
    if (size < 4 || two(data) != 0xFFD8) return 0;
    for (;;) {
        if (end - at < 4 || at[0] != 255) return 0;
        int marker = at[1], length = two(at + 2);
        const byte *body = at + 4, *next = at + 2 + length;
        if (length < 2 || end - at < 2 + length) return 0;
        if (marker == 0xDB) {
            while (next - body >= 65 && body[0] < 4) {
                quantizations |= 1 << body[0], steps[body[0]] = body[1], body += 65;
            }
            if (body != next) return 0;
        } else if (marker == 0xC4) {
            while (next - body >= 17) {
                int which = body[0], total = 0;
                for (int i = 1; i <= 16; i++) total += body[i];
                if ((which & 0xEE) || total > 256 || next - body < 17 + total) return 0;
                bool dc = which >> 4 == 0;
                Huffman *table = &tables[!dc | (which & 1) << 1];
                if (!define(table, body + 1, body + 17, total, dc ? DC_BITS : AC_BITS)) return 0;
                body += 17 + total;
            }
            if (body != next) return 0;
        } else if (marker == 0xDD) {
            if (length != 4) return 0;
            interval = two(body);
        } else if (marker == 0xC0) {
            if (count || length < 11 || body[0] != 8) return 0;
            height = two(body + 1), width = two(body + 3), count = body[5];
            if ((count != 1 && count != 3) || length != 8 + 3 * count) return 0;
            for (int i = 0; i < count; i++) {
                const byte *c = body + 6 + 3 * i;
                components[i] = {c[0], c[1] >> 4, c[1] & 15, c[2], 0, 0};
            }
        } else if (marker == 0xE0) {
            jfif = jfif || (length >= 16 && body[0] == 'J' && body[1] == 'F' && body[2] == 'I');
        } else if (marker == 0xEE) {
            bool named = length >= 14 && body[0] == 'A' && body[1] == 'd' && body[2] == 'o';
            adobe = named ? body[11] : adobe;
        } else if (marker == 0xDA) {
            if (!count || body[0] != count || length != 6 + 2 * count) return 0;
            for (int i = 0; i < count; i++) {
                if (body[1 + 2 * i] != components[i].id) return 0;
                int which = body[2 + 2 * i];
                if (which & 0xEE) return 0;
                components[i].dc = (which >> 4) << 1, components[i].ac = (which & 1) << 1 | 1;
            }
            const byte *c = body + 1 + 2 * count;
            if (c[0] != 0 || c[1] != 63 || c[2] != 0) return 0;
            at = next;
            break;
        } else if ((marker & 0xF0) != 0xE0 && marker != 0xFE) {
            return 0;
        }
        at = next;
    }
    if (height != file.rows || !height || !width) return 0;
    int across = 1, down = 1;
    if (count == 3) {
        bool counted = components[0].id == 1 && components[1].id == 2 && components[2].id == 3;
        if (adobe != -1 ? adobe != 1 : !jfif && !counted) return 0; // not YCbCr
        across = components[0].across, down = components[0].down;
        if (across < 1 || across > 2 || down < 1 || down > across) return 0;
        for (int i = 1; i < 3; i++) {
            if (components[i].across != 1 || components[i].down != 1) return 0;
        }
    }
    for (int i = 0; i < count; i++) {
        const Component &c = components[i];
        if (c.across < 1 || c.across > 2 || c.down < 1 || c.down > 2) return 0;
        if (!tables[c.dc].defined || !tables[c.ac].defined) return 0;
        if (c.quantization > 3 || !(quantizations >> c.quantization & 1)) return 0;
    }
    int in_row = (width - 1) / (8 * across) + 1, mcus = in_row * ((height - 1) / (8 * down) + 1);
    Bits bits = {at, end, 0, 0, false};
    int level[3] = {0, 0, 0};
    for (int mcu = 0; mcu < mcus; mcu++) {
        if (interval && mcu && mcu % interval == 0) {
            bits.fill();
            if (bits.count >= 8 || !bits.marker || bits.end - bits.at < 2) return 0;
            if (bits.at[1] != 0xD0 + ((mcu / interval - 1) & 7)) return 0;
            bits = {bits.at + 2, end, 0, 0, false};
            level[0] = level[1] = level[2] = 0;
        }
        for (int i = 0; i < count; i++) {
            const Component &c = components[i];
            int blocks = i ? 1 : across * down;
            for (int j = 0; j < blocks; j++) {
                if (!block(&bits, tables[c.dc], tables[c.ac], &level[i])) return 0;
                if (level[i] < -MOST_DC || level[i] >= MOST_DC) return 0;
                if (i + j == 0 && mcu % in_row == 0) {
                    levels[mcu / in_row] = level[0] * steps[c.quantization] / 8.0f + 128;
                }
            }
        }
    }
    bits.fill();
    if (bits.count >= 8 || !bits.marker) return 0;
    while (end - bits.at > 1 && bits.at[1] == 255) bits.at++; // fill bytes
    return end - bits.at > 1 && bits.at[1] == 0xD9 ? down : 0;
}

// A block and its first thread a file: not 0 where it is whole.
extern "C" __global__ void walk(const File *files, const byte *data, float *levels, byte *whole) {
    __shared__ Huffman tables[4]; // DC, AC of table 0, then of table 1
    if (threadIdx.x == 0) {
        const File &file = files[blockIdx.x];
        whole[blockIdx.x] =
            rows_of_mcu(data + file.begin, file, tables, levels + file.levels);
    }
}

// A block a picture, a thread a row of MCUs: 0 where more than a quarter of them differ.
extern "C" __global__ void compare(const Picture *pictures, const File *files, const float *levels,
                                   byte *whole) {
    const Picture &picture = pictures[blockIdx.x];
    int down = whole[picture.file];
    __shared__ int compared, wrong;
    if (threadIdx.x == 0) compared = wrong = 0;
    __syncthreads();
    for (int mcu = threadIdx.x; down && 8 * (down * mcu + 1) <= picture.rows; mcu += blockDim.x) {
        const byte *corner = (const byte *)picture.pixels + 8 * down * mcu * picture.pitch;
        float sum = 0;
        for (int y = 0; y < 8; y++) {
            for (int x = 0; x < 8; x++) {
                const byte *pixel = corner + y * picture.pitch + 3 * x;
                sum += 0.299f * pixel[0] + 0.587f * pixel[1] + 0.114f * pixel[2];
            }
        }
        float off = sum / 64 - levels[files[picture.file].levels + mcu];
        atomicAdd(&compared, 1);
        if (off > TOLERANCE || off < -TOLERANCE) atomicAdd(&wrong, 1);
    }
    __syncthreads();
    if (threadIdx.x == 0 && 4 * wrong > compared) whole[picture.file] = 0;
}
