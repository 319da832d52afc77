//! A QMP monitor of the lab's own, apart from the daemon's.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection to one QEMU.
pub struct Monitor {
    stream: BufReader<UnixStream>,
    /// Boot memory never changes while a VM runs: asked once.
    boot: BTreeMap<u32, u64>,
    /// virtio-mem devices and the host node that their memory is bound to.
    devices: Vec<(String, u32)>,
}

impl Monitor {
    /// Connects and learns what memory there is.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut monitor = Self { stream: BufReader::new(stream), boot: BTreeMap::new(), devices: Vec::new() };
        let mut greeting = String::new();
        monitor.stream.read_line(&mut greeting)?;
        monitor.call("qmp_capabilities", json!({}))?;
        monitor.learn()?;
        Ok(monitor)
    }

    /// Tells boot memory from virtio-mem by who uses which backend.
    fn learn(&mut self) -> Result<()> {
        let mut pluggable = Vec::new();
        for device in list(&self.call("qom-list", json!({"path": "/machine/peripheral"}))?) {
            let path = format!("/machine/peripheral/{device}");
            if let Ok(Value::String(backend)) = self.get(&path, "memdev") {
                let backend = backend.rsplit('/').next().unwrap_or_default().to_owned();
                pluggable.push((path, backend));
            }
        }
        let Value::Array(backends) = self.call("query-memdev", json!({}))? else { bail!("query-memdev gave no list") };
        for backend in backends {
            let Some(node) = backend["host-nodes"][0].as_u64() else { continue };
            let id = backend["id"].as_str().unwrap_or_default();
            match pluggable.iter().find(|(_, used)| used == id) {
                Some((device, _)) => self.devices.push((device.clone(), node as u32)),
                None => *self.boot.entry(node as u32).or_default() += backend["size"].as_u64().unwrap_or(0),
            }
        }
        Ok(())
    }

    /// What the VM could touch now: boot memory and plugged virtio-mem, by host node.
    pub fn by_node(&mut self) -> Result<BTreeMap<u32, u64>> {
        let mut by_node = self.boot.clone();
        for (path, node) in self.devices.clone() {
            let size = self.get(&path, "size")?.as_u64().context("a size is a number")?;
            *by_node.entry(node).or_default() += size;
        }
        Ok(by_node)
    }

    /// Bytes plugged of the virtio-mem device whose memory is bound to a host node.
    pub fn plugged(&mut self, node: u32) -> Result<u64> {
        let path = self.device(node)?;
        self.get(&path, "size")?.as_u64().context("a size is a number")
    }

    /// Where the memory of that device begins in the guest, plugged or not: a physical address.
    pub fn address(&mut self, node: u32) -> Result<u64> {
        let path = self.device(node)?;
        self.get(&path, "memaddr")?.as_u64().context("an address is a number")
    }

    /// Asks the virtio-mem device of a host node for so many bytes and waits until it has them.
    pub fn resize(&mut self, node: u32, bytes: u64, budget: Duration) -> Result<()> {
        let path = self.device(node)?;
        self.call("qom-set", json!({"path": path, "property": "requested-size", "value": bytes}))?;
        let until = Instant::now() + budget;
        // Often, as this is measured: it must not look slower than it is.
        while self.plugged(node)? != bytes {
            if Instant::now() >= until {
                bail!("node {node} has not {bytes} bytes within {} s", budget.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Gives a command with its arguments, an object.
    pub fn order(&mut self, command: &str, arguments: Value) -> Result<()> {
        self.call(command, arguments).map(drop)
    }

    fn device(&self, node: u32) -> Result<String> {
        let device = self.devices.iter().find(|(_, home)| *home == node);
        Ok(device.with_context(|| format!("no virtio-mem device of node {node}"))?.0.clone())
    }

    fn get(&mut self, path: &str, property: &str) -> Result<Value> {
        self.call("qom-get", json!({"path": path, "property": property}))
    }

    fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                bail!("QEMU closed the monitor");
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if answer.get("error").is_some() {
                bail!("{command}: {}", answer["error"]["desc"]);
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }
}

fn list(objects: &Value) -> Vec<String> {
    objects.as_array().into_iter().flatten().filter_map(|object| object["name"].as_str().map(str::to_owned)).collect()
}
