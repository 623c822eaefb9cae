//! Ctrl-C without leaving anything behind.
//!
//! A signal only sets a flag; loops look at it and return [`LabError::Interrupted`], so that `Drop` takes the lab down in
//! the normal way. A second signal ends the program at once; the lab's life-line then kills the nodes, and the next `up`
//! removes the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::error::{LabError, Result, failed};

/// Set by SIGINT, SIGTERM and SIGHUP. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Installs handlers for SIGINT, SIGTERM and SIGHUP in this process.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn install() -> Result<Self> {
        let flag = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // Order matters: the second signal finds the flag set and exits, the first one sets it.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag.0))
                .map_err(failed("installing a signal handler"))?;
            signal_hook::flag::register(signal, Arc::clone(&flag.0)).map_err(failed("installing a signal handler"))?;
        }
        Ok(flag)
    }

    /// Whether it is time to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks everyone who shares this flag to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// [`LabError::Interrupted`] if it is time to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_set() { Err(LabError::Interrupted) } else { Ok(()) }
    }
}
