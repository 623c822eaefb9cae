//! A PVM task: says it is ready, waits for GO, uses the CPU time it is told, reports. Started by `pvm-master`.

use std::time::Duration;

use anyhow::{Context, bail};
use mosix_workloads::burn::burn;
use mosix_workloads::pvm::Pvm;
use mosix_workloads::tasks::{DONE, GO, READY};

fn main() -> anyhow::Result<()> {
    let pvm = Pvm::load()?;
    let master = pvm.parent()?.context("pvm-worker is started by pvm-master, not by hand")?;
    pvm.send(&[master], READY, 0.0)?;
    let (_, tag) = pvm.receive()?;
    if tag != GO {
        bail!("message {tag} instead of GO");
    }
    let cpu_s = pvm.unpack()?;
    let cpu = Duration::try_from_secs_f64(cpu_s).with_context(|| format!("{cpu_s} s of work"))?;
    let burned = burn(cpu);
    pvm.send(&[master], DONE, burned.cpu.as_secs_f64())?;
    Ok(pvm.exit()?)
}
