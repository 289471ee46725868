//! The nftables table of our own, always written whole in one transaction, and the one rule that a packet filter with
//! a dropping FORWARD policy (dockerd's) needs besides.

use std::io::Write;
use std::process::{Command, Stdio};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{Attachment, NetworkError};

/// Replaces the table by what these connections need.
pub(super) fn write(
    name: &str,
    subnet: Ipv4Net,
    all: &[(String, Attachment)],
) -> Result<(), NetworkError> {
    run(&script(name, subnet, all))
}

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

/// Whether the table is there with all its rules and forwards exactly the ports of these connections.
pub(super) fn intact(name: &str, all: &[(String, Attachment)]) -> Result<bool, NetworkError> {
    let tables = list(&["list", "tables", "ip"])?;
    if !tables.iter().any(|item| item["table"]["name"] == *name) {
        return Ok(false);
    }
    let table = list(&["list", "table", "ip", name])?;
    let rules = table.iter().filter(|item| item["rule"].is_object()).count();
    let found = table
        .iter()
        .filter_map(|item| item["map"]["elem"].as_array())
        .flatten()
        .map(|element| (element[0].clone(), element[1]["concat"].clone()));
    let mut found: Vec<(Value, Value)> = found.collect();
    let mut wanted = Vec::new();
    for (_, attachment) in all {
        let address = attachment.address.to_string();
        let ports = attachment.ports.iter();
        wanted.extend(ports.map(|(host, inside)| (json!(host), json!([address, inside]))));
    }
    found.sort_by_key(|(port, _)| port.as_u64());
    wanted.sort_by_key(|(port, _)| port.as_u64());
    Ok(rules == RULES && found == wanted)
}

/// How many rules [`script`] has.
const RULES: usize = 10;

/// The whole table. Forwarding is one look-up in a map, whatever the number of ports. From outside only forwarded ports
/// are reached, and `guard` takes back what `route_localnet` opens: the host's loopback services to containers.
fn script(name: &str, subnet: Ipv4Net, all: &[(String, Attachment)]) -> String {
    let ports: Vec<String> = all
        .iter()
        .flat_map(|(_, a)| {
            a.ports
                .iter()
                .map(|(host, inside)| format!("{host} : {} . {inside}", a.address))
        })
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
