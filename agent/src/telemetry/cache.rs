//! A worker's memory of the series that it counts in, so that a connection or a request costs one look-up and no rendering
//! of labels.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::metrics::Metrics;

/// A series is dropped when nothing has counted in it for this long.
const SERIES_IDLE: Duration = Duration::from_secs(15 * 60);
/// The most series of one kind that a worker remembers; beyond it, the sides are `unknown`.
const MAX_SERIES: usize = 20_000;

/// What tells one series from another: of connections, or of requests.
pub trait Key: Eq + Hash + Sized {
    /// The counters of a series.
    type Series;

    /// The same without the sides' names.
    fn unnamed(self) -> Self;

    /// The series.
    fn series(&self, metrics: &Metrics) -> Self::Series;

    /// Takes the series out of what is shown.
    fn forget(&self, metrics: &Metrics);
}

/// Series, and when each was counted in last.
type Remembered<K> = HashMap<K, (Arc<<K as Key>::Series>, Instant)>;

/// The series that a worker counts in.
pub struct SeriesCache<K: Key>(Mutex<Remembered<K>>);

impl<K: Key> Default for SeriesCache<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Key> SeriesCache<K> {
    /// The series of `key`. Past `MAX_SERIES`, the sides are left unnamed.
    pub fn series(&self, metrics: &Metrics, key: K) -> Arc<K::Series> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((series, used)) = cache.get_mut(&key) {
            *used = Instant::now();
            return Arc::clone(series);
        }
        let key = if cache.len() >= MAX_SERIES { key.unnamed() } else { key };
        let series = Arc::new(key.series(metrics));
        cache.insert(key, (Arc::clone(&series), Instant::now()));
        series
    }

    /// Drops series that nothing counts in any more.
    pub fn sweep_into(&self, metrics: &Metrics) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|key, (series, used)| {
            let keep = Arc::strong_count(series) > 1 || used.elapsed() < SERIES_IDLE;
            if !keep {
                key.forget(metrics);
            }
            keep
        });
    }
}
