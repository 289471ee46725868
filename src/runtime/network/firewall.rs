//! The nftables table of our own, every change of which is one transaction, and the one rule that a packet filter with a
//! dropping FORWARD policy (dockerd's) needs besides.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use ipnet::Ipv4Net;
use serde_json::Value;

use super::{Attachment, NetworkError};

/// Removes the table and the rule; absent is done.
pub(super) fn remove(name: &str) -> Result<(), NetworkError> {
    run(&format!("table ip {name} {{}}\ndelete table ip {name}\n"))?;
    let mut deletions = String::new();
    // In any chain: what made a rule necessary may be gone by now.
    for rule in filter_table()?.iter().map(|item| &item["rule"]) {
        if let (Some(chain), Some(handle)) = (rule["chain"].as_str(), our_handle(rule, name)) {
            deletions.push_str(&format!("delete rule ip filter {chain} handle {handle}\n"));
        }
    }
    if deletions.is_empty() {
        Ok(())
    } else {
        run(&deletions)
    }
}

/// Makes the table forward exactly the ports of these connections. What is right already is not touched; ports are added
/// and taken out one by one where the rest of the table is as it should be, since Linux takes long to replace a table.
pub(super) fn put(
    name: &str,
    subnet: Ipv4Net,
    all: &[(String, Attachment)],
) -> Result<(), NetworkError> {
    let Some(found) = forwarded(name) else {
        return run(&script(name, subnet, all));
    };
    let wanted = elements(all);
    let of = |elements: &BTreeMap<u16, String>, other: &BTreeMap<u16, String>| {
        let own = elements.iter();
        let own = own.filter(|(port, target)| other.get(port) != Some(target));
        let own: Vec<String> = own
            .map(|(port, target)| format!("{port} : {target}"))
            .collect();
        own.join(", ")
    };
    let mut change = String::new();
    for (verb, elements) in [
        ("delete", of(&found, &wanted)),
        ("add", of(&wanted, &found)),
    ] {
        if !elements.is_empty() {
            change.push_str(&format!(
                "{verb} element ip {name} ports {{ {elements} }}\n"
            ));
        }
    }
    if change.is_empty() {
        return Ok(());
    }
    // Somebody may have taken the table away since it was read.
    run(&change).or_else(|_| run(&script(name, subnet, all)))
}

/// The ports that the table forwards, if it is there with all its rules.
fn forwarded(name: &str) -> Option<BTreeMap<u16, String>> {
    let table = list(&["list", "table", "ip", name]).ok()?;
    let rules = table.iter().filter(|item| item["rule"].is_object()).count();
    if rules != RULES {
        return None;
    }
    let map = table.iter().map(|item| &item["map"]);
    let map = map.into_iter().find(|map| map["name"] == "ports")?;
    let Some(elements) = map["elem"].as_array() else {
        return Some(BTreeMap::new());
    };
    let element = |element: &Value| {
        let port = u16::try_from(element[0].as_u64()?).ok()?;
        let target = &element[1]["concat"];
        Some((
            port,
            format!("{} . {}", target[0].as_str()?, target[1].as_u64()?),
        ))
    };
    elements.iter().map(element).collect()
}

/// What the table's map has for these connections.
fn elements(all: &[(String, Attachment)]) -> BTreeMap<u16, String> {
    let ports = all.iter().flat_map(|(_, attachment)| {
        let target = move |inside: u16| format!("{} . {inside}", attachment.address);
        let ports = attachment.ports.iter();
        ports.map(move |(host, inside)| (*host, target(*inside)))
    });
    ports.collect()
}

/// How many rules [`script`] has.
const RULES: usize = 10;

/// The whole table. Forwarding is one look-up in a map, whatever the number of ports. From outside only forwarded ports
/// are reached, and `guard` takes back what `route_localnet` opens: the host's loopback services to containers.
fn script(name: &str, subnet: Ipv4Net, all: &[(String, Attachment)]) -> String {
    let ports = elements(all);
    let ports: Vec<String> = ports
        .iter()
        .map(|(port, target)| format!("{port} : {target}"))
        .collect();
    let elements = if ports.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }}", ports.join(", "))
    };
    format!(
        "table ip {name} {{}}
delete table ip {name}
table ip {name} {{
  map ports {{ type inet_service : ipv4_addr . inet_service; {elements} }}
  chain prerouting {{
    type nat hook prerouting priority -100;
    fib daddr type local dnat ip to tcp dport map @ports
  }}
  chain output {{
    type nat hook output priority -100;
    fib daddr type local dnat ip to tcp dport map @ports
  }}
  chain postrouting {{
    type nat hook postrouting priority 100;
    ip saddr {subnet} oifname != \"{name}\" masquerade
    ip saddr 127.0.0.0/8 oifname \"{name}\" masquerade
    ip saddr {subnet} oifname \"{name}\" ct status dnat masquerade
  }}
  chain forward {{
    type filter hook forward priority 0;
    iifname \"{name}\" accept
    oifname \"{name}\" ct state established,related accept
    oifname \"{name}\" ct status dnat accept
    oifname \"{name}\" drop
  }}
  chain guard {{
    type filter hook prerouting priority -300;
    iifname \"{name}\" ip daddr 127.0.0.0/8 drop
  }}
}}
"
    )
}

/// Accepts our traffic in a chain of `ip filter` whose policy or rules would drop it: a verdict of our own table does
/// not override another's.
pub(super) fn open_forward(name: &str) -> Result<(), NetworkError> {
    let chains = foreign_chains()?;
    let Some((chain, rules)) = chains
        .iter()
        .find(|(chain, _)| chain == "DOCKER-USER")
        .or_else(|| chains.first())
    else {
        return Ok(());
    };
    if rules.iter().any(|rule| our_handle(rule, name).is_some()) {
        return Ok(());
    }
    let rule = |side: &str| {
        format!(
            "insert rule ip filter {chain} {side} \"{name}\" counter accept comment \"{}\"\n",
            comment(name)
        )
    };
    run(&(rule("iifname") + &rule("oifname")))
}

fn comment(name: &str) -> String {
    format!("backendai-agent {name}")
}

/// The chains in which a rule of ours may be needed: FORWARD with a dropping policy, and Docker's own hook in it.
fn foreign_chains() -> Result<Vec<(String, Vec<Value>)>, NetworkError> {
    let all = filter_table()?;
    let is_candidate = |chain: &Value| {
        (chain["name"] == "FORWARD" && chain["policy"] == "drop") || chain["name"] == "DOCKER-USER"
    };
    let chains = all
        .iter()
        .map(|item| &item["chain"])
        .filter(|chain| is_candidate(chain));
    Ok(chains
        .filter_map(|chain| chain["name"].as_str())
        .map(|chain| {
            let rules = all
                .iter()
                .map(|item| &item["rule"])
                .filter(|rule| rule["chain"] == *chain);
            (chain.to_owned(), rules.cloned().collect())
        })
        .collect())
}

/// All there is in `ip filter`, the table of iptables.
fn filter_table() -> Result<Vec<Value>, NetworkError> {
    let tables = list(&["list", "tables", "ip"])?;
    if !tables.iter().any(|item| item["table"]["name"] == "filter") {
        return Ok(Vec::new());
    }
    list(&["list", "table", "ip", "filter"])
}

/// The handle of a rule, if it is ours.
fn our_handle(rule: &Value, name: &str) -> Option<u64> {
    (rule["comment"] == *comment(name)).then(|| rule["handle"].as_u64())?
}

fn list(args: &[&str]) -> Result<Vec<Value>, NetworkError> {
    let output = Command::new("nft")
        .arg("-ja")
        .args(args)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|error| NetworkError::Firewall(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(&output.stderr));
    }
    let mut value: Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| NetworkError::Firewall(e.to_string()))?;
    match value["nftables"].take() {
        Value::Array(items) => Ok(items),
        _ => Err(NetworkError::Firewall("nft gave no list".into())),
    }
}

/// Has the rules checked and not applied.
pub(super) fn try_out(nft: &str, subnet: Ipv4Net) -> Result<(), NetworkError> {
    run_with(nft, &["-c", "-f", "-"], &script("bai-probe", subnet, &[]))
}

/// Whether FORWARD has a dropping policy.
pub(super) fn forward_is_dropped() -> Result<bool, NetworkError> {
    let all = filter_table()?;
    let mut chains = all.iter().map(|item| &item["chain"]);
    Ok(chains.any(|chain| chain["name"] == "FORWARD" && chain["policy"] == "drop"))
}

/// Runs a script as one transaction.
fn run(script: &str) -> Result<(), NetworkError> {
    run_with("nft", &["-f", "-"], script)
}

fn run_with(program: &str, args: &[&str], script: &str) -> Result<(), NetworkError> {
    let refused = |error: std::io::Error| NetworkError::Firewall(error.to_string());
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(refused)?;
    let mut input = child.stdin.take().expect("piped above");
    // A program that has ended already says why below.
    let _ = input.write_all(script.as_bytes());
    drop(input);
    let output = child.wait_with_output().map_err(refused)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(&output.stderr))
    }
}

fn failed(stderr: &[u8]) -> NetworkError {
    let text = String::from_utf8_lossy(stderr);
    NetworkError::Firewall(text.lines().next().unwrap_or("nft failed").to_owned())
}
