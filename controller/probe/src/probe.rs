//! The probe: a collector, a tracker and the machine's own figures, put together.

use crate::{
    ProbeError, Sample,
    collector::Collector,
    delta::Tracker,
    kernel::BpfCollector,
    procfs::ProcCollector,
    system::{MachineReader, Now},
};

/// Takes samples of the processes of this node.
pub trait Probe: Send {
    /// Reads all counters and compares them with the sample before.
    ///
    /// # Errors
    /// Something of the kernel could not be read. The probe stays usable; the next sample is a first one again.
    fn sample(&mut self) -> Result<Sample, ProbeError>;

    /// How it measures, and if it is not by BPF, why not: one line for a person.
    fn backend(&self) -> String;
}

struct Measuring<C> {
    collector: C,
    tracker: Tracker,
    /// Opened by the first sample, so that opening a probe cannot fail for this.
    machine: Option<MachineReader>,
    /// Why a better collector is not used.
    instead: Option<ProbeError>,
}

impl<C: Collector> Measuring<C> {
    fn new(collector: C, instead: Option<ProbeError>) -> Self {
        Self { collector, tracker: Tracker::default(), machine: None, instead }
    }
}

impl<C: Collector> Probe for Measuring<C> {
    fn sample(&mut self) -> Result<Sample, ProbeError> {
        let reader = match &mut self.machine {
            Some(reader) => reader,
            empty => empty.insert(MachineReader::open()?),
        };
        let machine = reader.read()?;
        let mut reading = self.tracker.begin(Now::read(), machine);
        self.collector.collect(&mut |record| reading.add(record))?;
        Ok(reading.finish())
    }

    fn backend(&self) -> String {
        match &self.instead {
            Some(why) => format!("{} ({why})", self.collector.name()),
            None => self.collector.name(),
        }
    }
}

/// The best probe that this machine allows: BPF, else `/proc`. Never fails; [`Probe::backend`] says what was refused.
///
/// Takes some 100 ms: the kernel's type information is read once, and given back.
#[must_use]
pub fn open() -> Box<dyn Probe> {
    match BpfCollector::open() {
        Ok(collector) => Box::new(Measuring::new(collector, None)),
        Err(why) => Box::new(Measuring::new(ProcCollector::new(), Some(why))),
    }
}

/// A probe that measures by BPF.
///
/// # Errors
/// The kernel or its configuration does not allow it, or its structures are not as expected.
pub fn open_bpf() -> Result<Box<dyn Probe>, ProbeError> {
    Ok(Box::new(Measuring::new(BpfCollector::open()?, None)))
}

/// A probe that reads `/proc`.
#[must_use]
pub fn open_proc() -> Box<dyn Probe> {
    Box::new(Measuring::new(ProcCollector::new(), None))
}
