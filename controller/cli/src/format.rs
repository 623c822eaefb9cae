//! Numbers and words for people.

const KIB: f64 = 1024.0;

/// Bytes with a unit that leaves at most four digits: `0 B`, `12.3 MiB`, `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / KIB;
    let mut unit = 0;
    // 1023.96 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= KIB;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Seconds: `0.3 s`, `59.9 s`, `2 min 05 s`, `3 h 20 min`, `4 d 02 h`.
pub(crate) fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "?".into();
    }
    // Below, 59.96 would print as 60.0.
    if value < 59.95 {
        return format!("{value:.1} s");
    }
    // Saturates for absurd values, which is right.
    let whole = value.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    if hours == 0 {
        format!("{minutes} min {:02} s", whole % 60)
    } else if days == 0 {
        format!("{hours} h {:02} min", minutes % 60)
    } else {
        format!("{days} d {:02} h", hours % 24)
    }
}

/// Milliseconds: `7.3 ms`, `850 ms`, `12.4 s`.
pub(crate) fn milliseconds(value: f64) -> String {
    if value < 99.95 {
        format!("{value:.1} ms")
    } else if value < 999.5 {
        format!("{value:.0} ms")
    } else {
        seconds(value / 1000.0)
    }
}

/// Without control characters: a process may call itself anything, even something that clears the screen.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_fitting_units() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn seconds_have_fitting_units() {
        let cases = [
            (0.0, "0.0 s"),
            (59.94, "59.9 s"),
            (59.96, "1 min 00 s"),
            (125.0, "2 min 05 s"),
            (12_000.0, "3 h 20 min"),
            (86_400.0 * 4.0 + 7_300.0, "4 d 02 h"),
            (f64::NAN, "?"),
            (-1.0, "?"),
        ];
        for (value, text) in cases {
            assert_eq!(seconds(value), text, "{value}");
        }
    }

    #[test]
    fn milliseconds_grow_into_seconds() {
        assert_eq!(milliseconds(7.34), "7.3 ms");
        assert_eq!(milliseconds(850.2), "850 ms");
        assert_eq!(milliseconds(12_400.0), "12.4 s");
    }

    #[test]
    fn a_name_cannot_drive_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a?[2Jb?c");
    }
}
