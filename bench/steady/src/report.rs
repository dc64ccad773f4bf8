//! What the bench reads: one line of JSON, times in microseconds.

use std::time::Duration;

use crate::load::Measured;

/// The line, after the word by which it is found.
pub(crate) fn line(measured: &Measured) -> String {
    let [latencies, lateness] = [&measured.latencies, &measured.lateness].map(|times| sorted(times));
    format!(
        "REPORT {{\"requests\": {}, \"p50_us\": {:.1}, \"p99_us\": {:.1}, \"max_us\": {:.1}, \"waited\": {}, \
         \"late_p50_us\": {:.1}, \"late_p99_us\": {:.1}}}",
        latencies.len(),
        percentile(&latencies, 50),
        percentile(&latencies, 99),
        percentile(&latencies, 100),
        measured.waited,
        percentile(&lateness, 50),
        percentile(&lateness, 99),
    )
}

fn sorted(times: &[Duration]) -> Vec<f64> {
    let mut microseconds: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    microseconds.sort_by(f64::total_cmp);
    microseconds
}

/// The smallest value that so many per cent do not exceed; 0 of nothing.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for (percent, expected) in [(50, 50.0), (99, 99.0), (100, 100.0)] {
            assert_eq!(percentile(&hundred, percent), expected);
        }
        assert_eq!((percentile(&[7.0], 1), percentile(&[], 50)), (7.0, 0.0));
    }

    #[test]
    fn the_line_is_found_and_read() {
        let time = Duration::from_micros(1500);
        let measured = Measured { latencies: vec![time; 2], lateness: vec![time / 1000], waited: 1 };
        assert_eq!(
            line(&measured),
            "REPORT {\"requests\": 2, \"p50_us\": 1500.0, \"p99_us\": 1500.0, \"max_us\": 1500.0, \"waited\": 1, \
             \"late_p50_us\": 1.5, \"late_p99_us\": 1.5}"
        );
    }
}
