//! Writing traces: what is read back as the same.

use std::fmt::Write;
use std::time::Duration;

use super::Trace;

impl Trace {
    /// The text form.
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        if let Some(host) = &self.host {
            writeln!(text, "# host {host}")?;
        }
        writeln!(text, "# seconds {}", seconds(self.end))?;
        for vm in &self.vms {
            let terms = &vm.terms;
            write!(text, "# vm {} weight={}", vm.name, terms.weight)?;
            if let Some(guarantee) = terms.guarantee {
                write!(text, " guarantee={guarantee}")?;
            }
            if let Some(limit) = terms.limit {
                write!(text, " limit={limit}")?;
            }
            write!(text, " kind={}", terms.kind)?;
            if let Some(memory) = terms.memory {
                write!(text, " memory={}", memory.exact())?;
            }
            if let Some(node) = terms.node {
                write!(text, " node={node}")?;
            }
            writeln!(text)?;
        }
        let memory = self.has_memory();
        writeln!(text, "seconds,vm,cores{}", if memory { ",memory_mib" } else { "" })?;
        let mut points: Vec<(Duration, usize, usize)> = Vec::new();
        for (place, vm) in self.vms.iter().enumerate() {
            points.extend(vm.points.iter().enumerate().map(|(number, point)| (point.at, place, number)));
        }
        points.sort_unstable();
        for (at, place, number) in points {
            let vm = &self.vms[place];
            let point = vm.points[number];
            write!(text, "{},{},{}", seconds(at), vm.name, (point.cores * 1000.0).round() / 1000.0)?;
            if memory {
                write!(text, ",{}", point.memory.0 >> 20)?;
            }
            writeln!(text)?;
        }
        Ok(())
    }
}

fn seconds(time: Duration) -> String {
    format!("{}", (time.as_secs_f64() * 1000.0).round() / 1000.0)
}
