"""The text input of dates, times and timestamps: ISO 8601 and PostgreSQL's common forms.

Order MDY as in DateStyle "ISO, MDY"; two-digit years are 1970 to 2069. Not known: names of time
zones other than UTC, Julian days, day-of-year dates, and words that depend on the clock (now, today).
"""

from libc.stdio cimport snprintf

from shardb._core.buffer cimport core_fail_value
from shardb._core.datetimes cimport (
    DATE_INFINITY, DATE_MINUS_INFINITY, TS_INFINITY, TS_MINUS_INFINITY, days_from_civil,
)

cdef enum:
    US_PER_SECOND = 1000000

cdef int64_t US_PER_DAY = 86400000000LL


ctypedef struct Parts:
    int64_t year
    int month, day        # 0: no date seen
    int64_t us            # of the day
    int zone_seconds
    bint has_time, has_zone, pm, am, bc
    bint year_later       # month and day seen, the year comes after the time
    int special           # 1 infinity, -1 -infinity, 2 epoch


cdef inline bint is_digit(char c) noexcept nogil:
    return c >= c'0' and c <= c'9'


cdef inline bint is_alpha(char c) noexcept nogil:
    return (c | 32) >= c'a' and (c | 32) <= c'z'


cdef inline bint is_space(char c) noexcept nogil:
    return c == c' ' or (c >= 9 and c <= 13)


cdef bint word_is(const char* s, Py_ssize_t n, const char* word) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if word[i] == 0 or (s[i] | 32) != word[i]:
            return False
    return word[n] == 0


cdef int month_of(const char* s, Py_ssize_t n) noexcept nogil:
    cdef const char* names = b"januaryfebruarymarchaprilmayjunejulyaugustseptemberoctobernovemberdecember"
    cdef int* starts = [0, 7, 15, 20, 25, 28, 32, 36, 42, 51, 58, 66, 74]
    cdef int m, size
    cdef Py_ssize_t i
    for m in range(12):
        size = starts[m + 1] - starts[m]
        if n != size and n != 3 and not (m == 8 and n == 4):
            continue
        i = 0
        while i < n and (s[i] | 32) == names[starts[m] + i]:
            i += 1
        if i == n:
            return m + 1
    return 0


cdef int month_days(int64_t year, int month) noexcept nogil:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


cdef bint day_name(const char* s, Py_ssize_t n) noexcept nogil:
    cdef const char* names = b"montuewedthufrisatsun"
    cdef int k
    if n < 3:
        return False
    for k in range(7):
        if ((s[0] | 32) == names[3 * k] and (s[1] | 32) == names[3 * k + 1]
                and (s[2] | 32) == names[3 * k + 2]):
            return n == 3 or (n > 5 and (s[n - 3] | 32) == c'd' and (s[n - 1] | 32) == c'y') or n == 4
    return False


# Reads digits at s[i:n]; the count is returned, -1 if more than 9.
cdef int read_number(const char* s, Py_ssize_t n, Py_ssize_t i, int* value) noexcept nogil:
    cdef int count = 0
    cdef int v = 0
    while i < n and is_digit(s[i]):
        if count == 9:
            return -1
        v = v * 10 + (s[i] - c'0')
        count += 1
        i += 1
    value[0] = v
    return count


# Reads ".ffffff" at s[i:]; rounds to microseconds, halves to even. Returns the characters taken.
cdef int read_fraction(const char* s, Py_ssize_t n, Py_ssize_t i, int* us) noexcept nogil:
    cdef int count = 1
    cdef int v = 0
    cdef int digits = 0
    cdef int seventh = 0
    cdef bint more = False
    while i + count < n and is_digit(s[i + count]):
        if digits < 6:
            v = v * 10 + (s[i + count] - c'0')
        elif digits == 6:
            seventh = s[i + count] - c'0'
        elif s[i + count] != c'0':
            more = True
        digits += 1
        count += 1
    while digits < 6:
        v = v * 10
        digits += 1
    if seventh > 5 or (seventh == 5 and (more or v & 1)):
        v += 1
    us[0] = v
    return count


# hh:mm[:ss[.f]]; -1 syntax, -2 out of range, else the characters taken.
cdef int read_clock(const char* s, Py_ssize_t n, Py_ssize_t i, int64_t* us) noexcept nogil:
    cdef Py_ssize_t at = i
    cdef int hour, minute
    cdef int second = 0
    cdef int fraction = 0
    cdef int count = read_number(s, n, at, &hour)
    if count <= 0:
        return -1
    at += count
    if at >= n or s[at] != c':':
        return -1
    at += 1
    count = read_number(s, n, at, &minute)
    if count <= 0 or count > 2:
        return -1
    at += count
    if at < n and s[at] == c':':
        at += 1
        count = read_number(s, n, at, &second)
        if count <= 0 or count > 2:
            return -1
        at += count
        if at < n and s[at] == c'.':
            at += read_fraction(s, n, at, &fraction)
    us[0] = ((<int64_t>hour * 60 + minute) * 60 + second) * US_PER_SECOND + fraction
    if hour > 24 or minute > 59 or second > 60 or us[0] > US_PER_DAY:
        return -2
    return <int>(at - i)


# [+-]hh[[:]mm[[:]ss]]; -1 syntax, -4 out of range, else the characters taken.
cdef int read_zone(const char* s, Py_ssize_t n, Py_ssize_t i, int* seconds) noexcept nogil:
    cdef Py_ssize_t at = i + 1
    cdef int value
    cdef int minute = 0
    cdef int second = 0
    cdef int count = read_number(s, n, at, &value)
    if count <= 0:
        return -1
    at += count
    if count == 4 or count == 3:
        minute = value % 100
        value = value / 100
    elif count == 6:
        second = value % 100
        minute = value / 100 % 100
        value = value / 10000
    elif count > 2:
        return -1
    if count <= 2 and at < n and s[at] == c':':
        count = read_number(s, n, at + 1, &minute)
        if count <= 0 or count > 2:
            return -1
        at += 1 + count
        if at < n and s[at] == c':':
            count = read_number(s, n, at + 1, &second)
            if count <= 0 or count > 2:
                return -1
            at += 1 + count
    if value > 15 or minute > 59 or second > 59:
        return -4
    seconds[0] = (value * 60 + minute) * 60 + second
    if s[i] == c'-':
        seconds[0] = -seconds[0]
    return <int>(at - i)


cdef bint clock_at(const char* s, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
    while i < n and is_digit(s[i]):
        i += 1
    return i < n and s[i] == c':'


# A date that begins at s[i]; fields joined by - / . or blanks. -1 syntax, -2 range, else taken.
cdef int read_date(const char* s, Py_ssize_t n, Py_ssize_t i, Parts* out) noexcept nogil:
    cdef int value[3]
    cdef int width[3]
    cdef int month_at = -1
    cdef int fields = 0
    cdef int count
    cdef Py_ssize_t at = i
    cdef Py_ssize_t start
    cdef int y, m, d
    while fields < 3:
        start = at
        if fields == 2 and month_at == 0 and clock_at(s, n, at):
            out.month, out.day = value[0], value[1]
            out.year_later = True
            return check_date(out, <int>(at - i))
        if at < n and is_digit(s[at]):
            count = read_number(s, n, at, &value[fields])
            if count < 0:
                return -1
            at += count
            width[fields] = count
            if fields == 0 and (count == 8 or count == 6) and not (at < n and s[at] == c'-'):
                d = value[0] % 100
                m = value[0] / 100 % 100
                y = value[0] / 10000
                if count == 6:
                    y += 2000 if y < 70 else 1900
                out.year, out.month, out.day = y, m, d
                return check_date(out, <int>(at - i))
        elif at < n and is_alpha(s[at]) and month_at < 0:
            while at < n and is_alpha(s[at]):
                at += 1
            value[fields] = month_of(s + start, at - start)
            width[fields] = 0
            if value[fields] == 0:
                return -1
            month_at = fields
        else:
            return -1
        fields += 1
        if fields == 3:
            break
        start = at
        while at < n and (is_space(s[at]) or s[at] == c',' or s[at] == c'-' or s[at] == c'/'
                          or s[at] == c'.'):
            at += 1
        if at == start and month_at < 0:
            return -1
    if month_at < 0:
        if width[0] > 2:
            y, m, d = 0, 1, 2
        else:
            y, m, d = 2, 0, 1
    elif month_at == 0:
        m, d, y = 0, 1, 2
    elif month_at == 1:
        m = 1
        if width[0] > 2:
            y, d = 0, 2
        else:
            d, y = 0, 2
    else:
        return -1
    if width[m] > 2 or width[d] > 2:
        return -1
    out.year, out.month, out.day = value[y], value[m], value[d]
    if width[y] <= 2:
        out.year += 2000 if out.year < 70 else 1900
    return check_date(out, <int>(at - i))


cdef int check_date(Parts* out, int taken) noexcept nogil:
    if out.month < 1 or out.month > 12 or out.day < 1:
        return -2
    if out.day > 31:
        return -2
    return taken


# hhmm or hhmmss of the compact ISO form
cdef int read_compact(const char* s, int n, Parts* out) noexcept nogil:
    cdef int hour = (s[0] - 48) * 10 + s[1] - 48
    cdef int minute = (s[2] - 48) * 10 + s[3] - 48
    cdef int second = (s[4] - 48) * 10 + s[5] - 48 if n == 6 else 0
    out.us = ((<int64_t>hour * 60 + minute) * 60 + second) * US_PER_SECOND
    out.has_time = True
    if minute > 59 or second > 60 or out.us > US_PER_DAY:
        return -2
    return n


# Reads everything there is; -1 syntax, -2 out of range, -3 unknown time zone (word at *bad).
cdef int read_parts(const char* s, Py_ssize_t n, bint time_only, Parts* out, Py_ssize_t* bad,
                    Py_ssize_t* bad_n) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j
    cdef int taken
    cdef int year = 0
    out.year = 0
    out.month = out.day = out.zone_seconds = out.special = 0
    out.us = 0
    out.has_time = out.has_zone = out.pm = out.am = out.bc = False
    out.year_later = False
    while i < n:
        if is_space(s[i]) or s[i] == c',':
            i += 1
            continue
        if is_digit(s[i]):
            j = i
            while j < n and is_digit(s[j]):
                j += 1
            if j < n and s[j] == c':' and not out.has_time:
                taken = read_clock(s, n, i, &out.us)
                if taken < 0:
                    return taken
                out.has_time = True
            elif out.year_later and out.has_time and j - i == 4:
                taken = read_number(s, n, i, &year)
                out.year = year
                out.year_later = False
            elif time_only and not out.has_time and out.month == 0 and (j - i == 6 or j - i == 4) and (
                    j == n or (s[j] != c'-' and s[j] != c'/')):
                taken = read_compact(s + i, <int>(j - i), out)
                if taken < 0:
                    return taken
            elif out.month == 0:
                taken = read_date(s, n, i, out)
                if taken < 0:
                    return taken
            elif not out.has_time and j - i == 6:
                taken = read_compact(s + i, 6, out)
                if taken < 0:
                    return taken
            else:
                return -1
            i += taken
            continue
        if (s[i] == c'+' or s[i] == c'-') and out.has_time and not out.has_zone:
            taken = read_zone(s, n, i, &out.zone_seconds)
            if taken < 0:
                return taken
            out.has_zone = True
            i += taken
            continue
        j = i + 1 if s[i] == c'-' else i
        while j < n and is_alpha(s[j]):
            j += 1
        if j == i:
            return -1
        if word_is(s + i, j - i, b"t") and (out.month or time_only) and not out.has_time:
            pass
        elif word_is(s + i, j - i, b"infinity"):
            out.special = 1
        elif s[i] == c'-' and word_is(s + i + 1, j - i - 1, b"infinity"):
            out.special = -1
        elif word_is(s + i, j - i, b"epoch"):
            out.special = 2
        elif word_is(s + i, j - i, b"bc") and out.month:
            out.bc = True
        elif word_is(s + i, j - i, b"ad") and out.month:
            pass
        elif word_is(s + i, j - i, b"am") and out.has_time:
            out.am = True
        elif word_is(s + i, j - i, b"pm") and out.has_time:
            out.pm = True
        elif (word_is(s + i, j - i, b"z") or word_is(s + i, j - i, b"utc")
              or word_is(s + i, j - i, b"gmt") or word_is(s + i, j - i, b"zulu")) and (
                  out.has_time or out.month):
            out.has_zone = True
        elif month_of(s + i, j - i) and out.month == 0:
            taken = read_date(s, n, i, out)
            if taken < 0:
                return taken
            i += taken
            continue
        elif day_name(s + i, j - i):
            pass
        elif out.has_time:
            bad[0] = i
            while j < n and not is_space(s[j]):
                j += 1
            bad_n[0] = j - i
            for taken in range(<int>(j - i)):
                if s[i + taken] == c'/':  # a zone of the tz database, not just any word
                    return -3
            return -1
        else:
            return -1
        i = j
    if out.month:
        if out.bc:
            if out.year < 1:
                return -2
            out.year = 1 - out.year
        elif out.year_later:
            return -1
        elif out.year < 1:
            return -2
        if out.day > month_days(out.year, out.month):
            return -2
    if out.pm or out.am:
        if out.us >= 13 * 3600 * <int64_t>US_PER_SECOND:
            return -2
        if out.us >= 12 * 3600 * <int64_t>US_PER_SECOND:
            out.us -= 12 * 3600 * <int64_t>US_PER_SECOND
        if out.pm:
            out.us += 12 * 3600 * <int64_t>US_PER_SECOND
    return 0


cdef int fail_parts(int why, const char* type_name, const char* s, Py_ssize_t n, Py_ssize_t bad,
                    Py_ssize_t bad_n) noexcept nogil:
    cdef char text[80]
    if why == -2:
        return core_fail_value(b"22008", b"date/time field value out of range: ", s, n, b"")
    if why == -4:
        return core_fail_value(b"22009", b"time zone displacement out of range: ", s, n, b"")
    if why == -3:
        return core_fail_value(b"22023", b"time zone ", s + bad, bad_n, b" not recognized")
    snprintf(text, 80, b"invalid input syntax for type %s: ", type_name)
    return core_fail_value(b"22007", text, s, n, b"")


cdef int date_from_text(const char* s, Py_ssize_t n, int64_t* days) noexcept nogil:
    cdef Parts p
    cdef Py_ssize_t bad = 0
    cdef Py_ssize_t bad_n = 0
    cdef int why = read_parts(s, n, False, &p, &bad, &bad_n)
    if why == 0 and p.special:
        days[0] = DATE_INFINITY if p.special == 1 else (DATE_MINUS_INFINITY if p.special == -1 else 0)
        return 0
    if why == 0 and p.month == 0:
        why = -1
    if why == 0:
        days[0] = days_from_civil(p.year, p.month, p.day)
        if p.year > 5874897 or p.year < -4712:
            return core_fail_value(b"22008", b"date out of range: ", s, n, b"")
        return 0
    return fail_parts(why, b"date", s, n, bad, bad_n)


cdef int time_from_text(const char* s, Py_ssize_t n, int64_t* us) noexcept nogil:
    cdef Parts p
    cdef Py_ssize_t bad = 0
    cdef Py_ssize_t bad_n = 0
    cdef int why = read_parts(s, n, True, &p, &bad, &bad_n)
    if why == 0 and (not p.has_time or p.special):
        why = -1
    if why == 0:
        us[0] = p.us
        return 0
    return fail_parts(why, b"time", s, n, bad, bad_n)


cdef int timestamp_from_text(const char* s, Py_ssize_t n, bint zone, int64_t* us) noexcept nogil:
    cdef Parts p
    cdef Py_ssize_t bad = 0
    cdef Py_ssize_t bad_n = 0
    cdef int64_t days
    cdef int why = read_parts(s, n, False, &p, &bad, &bad_n)
    if why == 0 and p.special:
        us[0] = TS_INFINITY if p.special == 1 else (TS_MINUS_INFINITY if p.special == -1 else 0)
        return 0
    if why == 0 and p.month == 0:
        why = -1
    if why == 0:
        days = days_from_civil(p.year, p.month, p.day)
        if days > 106751990 or days < -106751990 or p.year < -4712:
            return core_fail_value(b"22008", b"timestamp out of range: ", s, n, b"")
        us[0] = days * US_PER_DAY + p.us
        if zone:
            us[0] -= <int64_t>p.zone_seconds * US_PER_SECOND
        return 0
    return fail_parts(why, b"timestamp with time zone" if zone else b"timestamp", s, n, bad, bad_n)
