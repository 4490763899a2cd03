// Pillow's resize (src/libImaging/Resample.c) of many RGB images of different sizes in three
// launches: the filters' coefficients, the pass along the first axis, the pass along the second.
// The arithmetic is Pillow's: coefficients in float64, then in fixed point with 22 bits; 8 bits
// between the passes. Compile with --fmad=false: a fused multiply-add rounds once where Pillow
// rounds twice.
//
// Axis 0 is resized first. Which of an image's axes that is, and how it lies in memory (turned,
// mirrored), is in its steps.

#define BITS 22

struct Axis {
    long long step;         // bytes from pixel to pixel, of the source
    long long out_step;     // bytes from pixel to pixel, of the result
    long long coefficients; // index of the first one
    int size;               // pixels of the source
    int resized;            // pixels it is resized to
    int offset;             // of the crop, in the resized image; below 0 is the border
    int outputs;            // pixels of the crop
    int taps;               // coefficients kept for an output
    int unused;
};

struct Image {
    Axis axes[2];
    long long pixels;  // address of the upright image's first pixel
    long long halfway; // index of the first byte between the passes
    int first, count;  // pixels along axis 1 that the crop needs
};

__device__ double weight(double x, int cubic) {
    x = x < 0.0 ? -x : x;
    if (!cubic) return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

__device__ unsigned char rounded(int sum) {
    sum >>= BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

__device__ bool is_inside(const Axis &axis, int output) {
    int at = output + axis.offset;
    return at >= 0 && at < axis.resized;
}

// The first pixel that an output is made of, and how many follow.
__device__ int begin_of(const Axis &axis, int output, int cubic, int *count) {
    double scale = (double)axis.size / axis.resized, wide = scale < 1.0 ? 1.0 : scale;
    double support = (cubic ? 2.0 : 1.0) * wide, center = (output + axis.offset + 0.5) * scale;
    int begin = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
    begin = begin < 0 ? 0 : begin;
    end = end > axis.size ? axis.size : end;
    *count = end - begin;
    return begin;
}

// Block (axis, image), a thread an output.
extern "C" __global__ void weigh(const Image *images, int *coefficients, int cubic) {
    const Axis &axis = images[blockIdx.y].axes[blockIdx.x];
    double scale = (double)axis.size / axis.resized, narrow = 1.0 / (scale < 1.0 ? 1.0 : scale);
    for (int output = threadIdx.x; output < axis.outputs; output += blockDim.x) {
        if (!is_inside(axis, output)) continue;
        int count, begin = begin_of(axis, output, cubic, &count);
        double center = (output + axis.offset + 0.5) * scale, sum = 0.0;
        for (int i = 0; i < count; i++) sum += weight((i + begin - center + 0.5) * narrow, cubic);
        int *mine = coefficients + axis.coefficients + (long long)output * axis.taps;
        for (int i = 0; i < count; i++) {
            double part = weight((i + begin - center + 0.5) * narrow, cubic);
            if (sum != 0.0) part /= sum;
            mine[i] = (int)((part < 0 ? -0.5 : 0.5) + part * (1 << BITS));
        }
    }
}

// Block (pixel along axis 1, image), a thread an output: the pass along axis 0.
extern "C" __global__ void pass_0(const Image *images, const int *coefficients,
                                  unsigned char *halfway, int cubic) {
    const Image &image = images[blockIdx.y];
    const Axis &axis = image.axes[0];
    for (int line = blockIdx.x; line < image.count; line += gridDim.x) {
        const unsigned char *source =
            (const unsigned char *)image.pixels + (line + image.first) * image.axes[1].step;
        unsigned char *out = halfway + image.halfway + 3LL * line * axis.outputs;
        for (int output = threadIdx.x; output < axis.outputs; output += blockDim.x) {
            if (!is_inside(axis, output)) continue;
            int count, begin = begin_of(axis, output, cubic, &count);
            const int *k = coefficients + axis.coefficients + (long long)output * axis.taps;
            const unsigned char *pixel = source + begin * axis.step;
            int red = 1 << (BITS - 1), green = red, blue = red;
            for (int i = 0; i < count; i++, pixel += axis.step) {
                red += pixel[0] * k[i], green += pixel[1] * k[i], blue += pixel[2] * k[i];
            }
            out[3 * output] = rounded(red);
            out[3 * output + 1] = rounded(green);
            out[3 * output + 2] = rounded(blue);
        }
    }
}

// Block (output along axis 1, image), a thread an output along axis 0: the pass along axis 1, and
// the border.
extern "C" __global__ void pass_1(const Image *images, const int *coefficients,
                                  const unsigned char *halfway, unsigned char *out,
                                  long long out_bytes, int cubic, int fill) {
    const Image &image = images[blockIdx.y];
    const Axis &across = image.axes[0], &axis = image.axes[1];
    for (int output = blockIdx.x; output < axis.outputs; output += gridDim.x) {
        bool within = is_inside(axis, output);
        int count = 0, begin = within ? begin_of(axis, output, cubic, &count) - image.first : 0;
        const int *k = coefficients + axis.coefficients + (long long)output * axis.taps;
        const unsigned char *source = halfway + image.halfway + 3LL * begin * across.outputs;
        unsigned char *line = out + blockIdx.y * out_bytes + output * axis.out_step;
        for (int other = threadIdx.x; other < across.outputs; other += blockDim.x) {
            bool inside = within && is_inside(across, other);
            unsigned char *pixel = line + other * across.out_step;
            for (int channel = 0; channel < 3; channel++) {
                int sum = 1 << (BITS - 1);
                for (int i = 0; inside && i < count; i++) {
                    sum += source[3LL * (i * across.outputs + other) + channel] * k[i];
                }
                pixel[channel] = inside ? rounded(sum) : fill >> (16 - 8 * channel) & 255;
            }
        }
    }
}
