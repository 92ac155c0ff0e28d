/* Exact decimal arithmetic on 128-bit integers with 256-bit intermediates.

   A numeric is (n, scale): n / 10^scale, |n| < 10^38. Functions return 0, or WIDE_OVERFLOW when no
   allowed scale brings the result under 38 digits, or WIDE_ZERO for a zero divisor. Result scales
   follow PostgreSQL's numeric.c; where 38 digits do not hold PostgreSQL's scale, digits after the
   point beyond WIDE_KEEP are rounded away (half away from zero) before giving up. */

#ifndef SHARDB_WIDE_H
#define SHARDB_WIDE_H

#include <stdint.h>

typedef unsigned __int128 wide_u128;
typedef __int128 wide_i128;

typedef struct { wide_u128 hi, lo; } wide_u256;

enum { WIDE_OK = 0, WIDE_OVERFLOW = 1, WIDE_ZERO = 2 };
enum { WIDE_DIGITS = 38, WIDE_KEEP = 16 };

#define WIDE_E19 10000000000000000000ULL

static const uint64_t wide_small_power[20] = {
    1ULL, 10ULL, 100ULL, 1000ULL, 10000ULL, 100000ULL, 1000000ULL, 10000000ULL, 100000000ULL,
    1000000000ULL, 10000000000ULL, 100000000000ULL, 1000000000000ULL, 10000000000000ULL,
    100000000000000ULL, 1000000000000000ULL, 10000000000000000ULL, 100000000000000000ULL,
    1000000000000000000ULL, WIDE_E19};

/* 10^e for 0 <= e <= 38. */
static inline wide_u128 wide_power(int e) {
    return e < 20 ? (wide_u128)wide_small_power[e]
                  : (wide_u128)WIDE_E19 * wide_small_power[e - 19];
}

static inline wide_u128 wide_abs(wide_i128 n) { return n < 0 ? -(wide_u128)n : (wide_u128)n; }

static inline wide_i128 wide_sign(wide_u128 m, int negative) {
    return negative ? -(wide_i128)m : (wide_i128)m;
}

static inline int wide_fits(wide_u128 m) { return m < wide_power(38); }

static inline wide_u256 wide_multiply(wide_u128 a, wide_u128 b) {
    uint64_t a0 = (uint64_t)a, a1 = (uint64_t)(a >> 64), b0 = (uint64_t)b, b1 = (uint64_t)(b >> 64);
    wide_u128 p00 = (wide_u128)a0 * b0, p01 = (wide_u128)a0 * b1, p10 = (wide_u128)a1 * b0;
    wide_u128 p11 = (wide_u128)a1 * b1;
    wide_u128 middle = (p00 >> 64) + (uint64_t)p01 + (uint64_t)p10;
    wide_u256 r;
    r.lo = (middle << 64) | (uint64_t)p00;
    r.hi = p11 + (p01 >> 64) + (p10 >> 64) + (middle >> 64);
    return r;
}

static inline int wide_less(wide_u256 a, wide_u256 b) {
    return a.hi != b.hi ? a.hi < b.hi : a.lo < b.lo;
}

/* Quotient and remainder by shifting and subtracting; REQUIRES 0 < d < 2^127. */
static wide_u256 wide_divide(wide_u256 n, wide_u128 d, wide_u128* remainder) {
    wide_u256 q;
    wide_u128 r;
    int bit;
    if (n.hi == 0) {
        q.hi = 0;
        q.lo = n.lo / d;
        *remainder = n.lo % d;
        return q;
    }
    q.hi = n.hi / d;
    r = n.hi % d;
    q.lo = 0;
    for (bit = 127; bit >= 0; bit--) {
        r = (r << 1) | ((n.lo >> bit) & 1);
        if (r >= d) {
            r -= d;
            q.lo |= (wide_u128)1 << bit;
        }
    }
    *remainder = r;
    return q;
}

static inline wide_u256 wide_increment(wide_u256 q) {
    q.lo += 1;
    if (q.lo == 0) q.hi += 1;
    return q;
}

/* n / d rounded half away from zero. */
static inline wide_u256 wide_divide_round(wide_u256 n, wide_u128 d) {
    wide_u128 r;
    wide_u256 q = wide_divide(n, d, &r);
    return r >= d - r ? wide_increment(q) : q;
}

static inline int wide_digits(wide_u128 m) {
    int d = 0;
    while (d < 38 && m >= wide_power(d)) d++;
    return m >= wide_power(38) ? 39 : d;
}

/* Brings the magnitude m at *scale under 38 digits, rounding digits beyond `keep`. */
static int wide_fit(wide_u256 m, int negative, int* scale, int keep, wide_i128* out) {
    if (m.hi == 0 && wide_fits(m.lo)) {
        *out = wide_sign(m.lo, negative);
        return WIDE_OK;
    }
    while (*scale > keep) {
        int drop = 1;
        if (m.hi != 0) drop = *scale - keep < 8 ? *scale - keep : 8;
        m = wide_divide_round(m, wide_power(drop));
        *scale -= drop;
        if (m.hi == 0 && wide_fits(m.lo)) {
            *out = wide_sign(m.lo, negative);
            return WIDE_OK;
        }
    }
    return WIDE_OVERFLOW;
}

/* (n, from) at scale `to`, rounded half away from zero; *exact tells if nothing was lost. */
static inline int wide_rescale(wide_i128 n, int from, int to, wide_i128* out, int* exact) {
    *exact = 1;
    if (from == to) {
        *out = n;
        return WIDE_OK;
    }
    wide_u128 m = wide_abs(n);
    if (to > from) {
        wide_u256 p;
        if (m == 0) {
            *out = 0;
            return WIDE_OK;
        }
        if (to - from > 38) return WIDE_OVERFLOW;
        p = wide_multiply(m, wide_power(to - from));
        if (p.hi != 0 || !wide_fits(p.lo)) return WIDE_OVERFLOW;
        *out = wide_sign(p.lo, n < 0);
        return WIDE_OK;
    }
    if (from - to > 38) {
        *exact = m == 0;
        *out = 0;
        return WIDE_OK;
    }
    wide_u128 d = wide_power(from - to), q = m / d, r = m % d;
    *exact = r == 0;
    if (r >= d - r) q++;
    *out = wide_sign(q, n < 0);
    return WIDE_OK;
}

/* Drops trailing zeros after the point. */
static inline void wide_strip(wide_i128* n, int* scale) {
    while (*scale > 0 && *n % 10 == 0) {
        *n /= 10;
        *scale -= 1;
    }
}

static int wide_compare(wide_i128 a, int sa, wide_i128 b, int sb) {
    if (sa == sb) return a < b ? -1 : a > b;
    if ((a < 0) != (b < 0)) return a < 0 ? -1 : 1;
    wide_u256 x = {0, wide_abs(a)}, y = {0, wide_abs(b)};
    int r, e = sa < sb ? sb - sa : sa - sb;
    if (e > 38) {
        wide_strip(&a, &sa);
        wide_strip(&b, &sb);
        x.lo = wide_abs(a);
        y.lo = wide_abs(b);
        e = sa < sb ? sb - sa : sa - sb;
        if (e > 38) e = 38;
    }
    if (sa < sb) x = wide_multiply(x.lo, wide_power(e));
    else if (sb < sa) y = wide_multiply(y.lo, wide_power(e));
    r = wide_less(x, y) ? -1 : wide_less(y, x);
    return a < 0 ? -r : r;
}

static int wide_add(wide_i128 a, int sa, wide_i128 b, int sb, wide_i128* out, int* scale) {
    int exact, s = sa > sb ? sa : sb;
    wide_i128 x, y;
    if (sa == sb) {
        x = a;
        y = b;
    } else if (wide_rescale(a, sa, s, &x, &exact) || wide_rescale(b, sb, s, &y, &exact)) {
        wide_strip(&a, &sa);
        wide_strip(&b, &sb);
        for (s = sa > sb ? sa : sb;; s--) {
            if (!wide_rescale(a, sa, s, &x, &exact) && !wide_rescale(b, sb, s, &y, &exact)) break;
            if (s <= WIDE_KEEP) return WIDE_OVERFLOW;
        }
    }
    x += y;
    *scale = s;
    {
        wide_u256 m = {0, wide_abs(x)};
        return wide_fit(m, x < 0, scale, s < WIDE_KEEP ? s : WIDE_KEEP, out);
    }
}

static int wide_mul(wide_i128 a, int sa, wide_i128 b, int sb, wide_i128* out, int* scale) {
    wide_u256 p = wide_multiply(wide_abs(a), wide_abs(b));
    int s = sa + sb;
    if (p.hi != 0 || !wide_fits(p.lo)) {
        wide_strip(&a, &sa);
        wide_strip(&b, &sb);
        p = wide_multiply(wide_abs(a), wide_abs(b));
        s = sa + sb;
    }
    *scale = s;
    return wide_fit(p, (a < 0) != (b < 0), scale, s < WIDE_KEEP ? s : WIDE_KEEP, out);
}

/* Weight (in base 10000) and first base-10000 digit of m / 10^scale, as numeric.c has them. */
static inline void wide_weight(wide_u128 m, int scale, int* weight, int* first) {
    int digits = wide_digits(m), point, group;
    if (m == 0) {
        *weight = 0;
        *first = 0;
        return;
    }
    point = digits - scale; /* decimal digits before the point */
    *weight = point > 0 ? (point - 1) / 4 : -((-point) / 4) - 1;
    group = point - *weight * 4; /* decimal digits of the first group, 1..4 */
    if (digits >= group) *first = (int)(m / wide_power(digits - group));
    else *first = (int)(m * wide_power(group - digits));
}

/* The scale that numeric.c's select_div_scale gives to a / b. */
static int wide_div_scale(wide_u128 a, int sa, wide_u128 b, int sb) {
    int w1, f1, w2, f2, s;
    wide_weight(a, sa, &w1, &f1);
    wide_weight(b, sb, &w2, &f2);
    s = w1 - w2;
    if (f1 <= f2) s--;
    s = 16 - s * 4;
    if (s < sa) s = sa;
    if (s < sb) s = sb;
    return s < 0 ? 0 : s;
}

static int wide_div(wide_i128 a, int sa, wide_i128 b, int sb, wide_i128* out, int* scale) {
    int s, keep, e;
    wide_u256 q;
    if (b == 0) return WIDE_ZERO;
    s = wide_div_scale(wide_abs(a), sa, wide_abs(b), sb);
    if (s > WIDE_DIGITS) s = WIDE_DIGITS;
    wide_strip(&b, &sb);
    wide_strip(&a, &sa);
    keep = s < WIDE_KEEP ? s : WIDE_KEEP;
    e = s + sb - sa;
    if (e > 38) {
        s -= e - 38;
        e = 38;
    }
    if (e >= 0) {
        q = wide_divide_round(wide_multiply(wide_abs(a), wide_power(e)), wide_abs(b));
    } else {
        wide_u256 n = {0, wide_abs(a)};
        wide_u256 d = wide_multiply(wide_abs(b), wide_power(-e));
        if (d.hi != 0 || d.lo >> 127) {
            q.hi = q.lo = 0;
        } else {
            q = wide_divide_round(n, d.lo);
        }
    }
    *scale = s;
    return wide_fit(q, (a < 0) != (b < 0), scale, keep, out);
}

static int wide_mod(wide_i128 a, int sa, wide_i128 b, int sb, wide_i128* out, int* scale) {
    int exact, s = sa > sb ? sa : sb;
    wide_i128 x, y;
    if (b == 0) return WIDE_ZERO;
    if (wide_rescale(a, sa, s, &x, &exact) || wide_rescale(b, sb, s, &y, &exact)) {
        wide_strip(&a, &sa);
        wide_strip(&b, &sb);
        s = sa > sb ? sa : sb;
        if (wide_rescale(a, sa, s, &x, &exact)) return WIDE_OVERFLOW;
        if (wide_rescale(b, sb, s, &y, &exact)) {
            /* |b| is above 38 digits at this scale, so above |a|. */
            *out = x;
            *scale = s;
            return WIDE_OK;
        }
    }
    *out = x % y;
    *scale = s;
    return WIDE_OK;
}

#endif
