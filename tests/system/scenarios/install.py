"""From the deb to a mesh and back to hosts without it, with the commands of README.md and docs/installing.md."""

from documented import Documented
from hosts import Network
from load import PROGRAMS, Load, figures, losses
from mesh import PROGRAM, access_log, bring, drain_for, grant, has_certificate, installed_version, program_of, service_unit, token_in, upgrade
from report import until

UNITS = ("baremesh", "baremesh-control")


def run(report, packages):
    """the deb on three hosts: a mesh by the README's commands, upgrade, downgrade, removal and purge

    Hosts are named as the README names them."""
    first, next_one, _ = packages
    with Network() as network:
        control, web, orders = hosts = network.boot("control", "web1", "orders1")
        manual = Documented("docs/installing.md", "From a package", "By hand", "Removal")
        installed(report, hosts, manual, first)
        first_mesh(report, hosts, manual)
        identities(report, web, orders)
        group(report, web)
        grant(control, web, "callers")
        grant(control, orders, "shop")
        for host in (web, orders):
            # Streams of the load that are open longer would be reset by then.
            drain_for(host, 600)
            host.run("systemctl reload baremesh")
        load = Load(web, orders)
        for package in (next_one, first):
            replaced(report, hosts, package, load)
        counts = load.end()
        figures(report, counts)
        report.check("nothing of the load was lost over upgrade and downgrade of all three", not losses(counts), losses(counts))
        removed(report, orders, first)
        purged(report, control, web, manual, first)
        by_hand(report, control, web, manual, first)
        manual.all_were_run(report)


def installed(report, hosts, manual, package):
    given = "apt install ./baremesh_0.1.0-1_amd64.deb"
    for host in hosts:
        bring(host, package)
        host.run(f"cd /srv && {given}")
        for unit in UNITS:
            host.refuses(f"systemctl is-enabled {unit}")
            host.refuses(f"systemctl is-active {unit}")
        host.run("getent group baremesh; test -s /usr/share/man/man1/baremesh-service-register.1.gz && "
                 "test -s /usr/share/doc/baremesh/baremesh.cdx.json && baremesh version")
    manual.is_done(given)
    report.holds("apt installs the deb on three hosts, and nothing is enabled or runs")


def first_mesh(report, hosts, manual):
    control, web, orders = hosts
    readme = Documented("README.md", "A first mesh by hand")
    for given in ("./package", "apt install ./baremesh_0.1.0-1_amd64.deb"):
        readme.is_done(given)
    here = ("10.9.0.5", control.address)
    said = readme.run(control, "baremesh init --address 10.9.0.5:15012 --service web", here)
    readme.run(control, "systemctl enable --now baremesh-control")
    granted = readme.run(control, "baremesh token create --service orders")
    manual.is_done("baremesh init --address 10.9.0.5:15012 && systemctl enable --now baremesh-control")
    readme.run(web, "baremesh join 10.9.0.5 --token bm1.…", here, ("bm1.…", token_in(said)))
    readme.run(web, "systemctl enable --now baremesh")
    manual.run(orders, "baremesh join 10.9.0.5 --token bm1.… && systemctl enable --now baremesh", here, ("bm1.…", token_in(granted)))
    report.holds("a control host serves, and two hosts have joined and are ready")

    orders.copy(PROGRAMS / "orders.py", "/srv/orders.py")
    service_unit(orders, "orders", "/usr/bin/python3 /srv/orders.py", "User=www-data\n")
    readme.run(orders, "baremesh service register orders --port 8080 --user www-data")
    web.run("baremesh service register web --port 80 --user www-data")
    for host, name in ((orders, "orders"), (web, "web")):
        until(f"{host.name} has a certificate for {name}", lambda host=host, name=name: has_certificate(host, name))
    readme.is_done("baremesh status")
    called = "runuser -u www-data -- curl http://orders.mesh.internal:8080/"
    until("orders is called by name", lambda: web.succeeds(called))
    said = readme.run(web, called)
    report.check("a user's program calls a service of another host by name", "three orders" in said, said)
    until("the called side's access log names both",
          lambda: access_log(orders, reporter="destination", source_principal="spiffe://mesh.internal/ns/default/sa/web",
                             destination_principal="spiffe://mesh.internal/ns/default/sa/orders", connection_security_policy="mutual_tls"))
    report.holds("the called side's log has the caller's identity, over mutual TLS")

    control.run("cp /usr/share/doc/baremesh/examples/policy.toml /root/")
    control.run("cd /root && baremesh apply -f policy.toml")
    readme.is_done("baremesh apply -f policy.toml")
    until("who is not listed is denied", lambda: not web.succeeds("curl -sf --max-time 10 http://orders.mesh.internal:8080/"))
    until("the called side's log says so",
          lambda: access_log(orders, response_code_details="denied", source_principal="spiffe://mesh.internal/ns/hosts/sa/web1"))
    web.run(called)
    report.holds("a policy lets the listed caller through and denies another program of its host")
    said = readme.run(control, "baremesh status")
    report.check("status on the control host shows both hosts with their services",
                 all(f"{name}.default" in said for name in ("orders", "web")) and said.count("connected") == 2, said)
    readme.all_were_run(report)


def identities(report, web, orders):
    """Services that are known by their units."""
    orders.run("baremesh service register orders --port 8080 --unit orders.service")
    web.run("baremesh service register web --port 80 --unit web.service")
    fetch = "curl -sSf --max-time 20 http://orders.mesh.internal:8080/"
    until("the unit is let through", lambda: "three orders" in web.as_unit("web", fetch).stdout)
    report.check("the unit that is registered is let through, and others of its host are not",
                 web.as_unit("web2", fetch).returncode != 0 and not web.succeeds(f"runuser -u www-data -- {fetch}"))


def group(report, host):
    host.run("useradd --create-home alice")
    host.refuses("runuser -u alice -- baremesh status")
    host.run("usermod -aG baremesh alice")
    host.run("runuser -u alice -- baremesh status")
    report.holds("a member of the group baremesh may ask the agent, and another user may not")


def replaced(report, hosts, package, load):
    """Another version on every host, the control host first, under load."""
    for host in hosts:
        upgrade(host, package)
        for unit in UNITS:
            if host.is_active(unit):
                until(f"{host.name}: {unit} runs the new program",
                      lambda host=host, unit=unit: program_of(host, unit) == package.digest)
        load.goes_on()
        report.check(f"{host.name} has {package.version}, and what runs is its program",
                     installed_version(host) == f"{package.version}-1")


def removed(report, host, package):
    host.run("baremesh service deregister shop && apt remove -y baremesh")
    host.refuses("systemctl is-active baremesh")
    host.refuses("nft list tables | grep baremesh")
    host.refuses("(ip -4 route show table all proto 151; ip -6 route show table all proto 151) | grep .")
    host.refuses(f"test -e {PROGRAM}")
    host.run("test -s /var/lib/baremesh/node/node.pem && test -s /etc/baremesh/registrations.d/default.orders.toml")
    report.holds("a removal stops the agent and takes the rules, and leaves keys and registrations")
    host.run(f"apt install -y ./{package.deb.name}".replace("./", "/srv/"))
    host.run("systemctl is-enabled baremesh && systemctl start baremesh && baremesh status")
    report.holds("when the package comes back, the host is a member again")


def purged(report, control, host, manual, package):
    said = host.run("apt purge -y baremesh")
    report.check("a purge that asks nobody keeps the state, and says how to remove it", "rm -r /var/lib/baremesh /etc/baremesh" in said, said)
    host.run("test -s /var/lib/baremesh/node/node.pem && rm -r /var/lib/baremesh /etc/baremesh")
    host.run(f"apt install -y /srv/{package.deb.name}")
    host.refuses("systemctl is-enabled baremesh")
    token = token_in(control.run("baremesh token create --rejoin web1"))
    host.run(f"baremesh join {control.address} --token {token} && systemctl enable --now baremesh")
    report.holds("after it, a host joins under its name again")
    manual.run(host, "echo 'baremesh baremesh/remove-state boolean true' | debconf-set-selections")
    host.run("userdel alice && apt purge -y baremesh")
    left = host.run("find / -xdev \\( -name '*baremesh*' -o -path '*/baremesh/*' \\) ! -path '/srv/*' ! -path '/proc/*' ! -path '/sys/*' "
                    "! -path '/etc/systemd/system/baremesh.service.d*' ! -path '/var/log/*' ! -path '/var/cache/apt/*' ! -path '/run/udev/*'; find /run -name '*baremesh*'")
    report.check("a purge that was told to takes everything", not left, left)
    host.refuses("nft list tables | grep baremesh")
    host.refuses("getent group baremesh")


def by_hand(report, control, host, manual, package):
    """Without a package, and then with one over it."""
    host.copy(package.program, "/srv/checkout/target/release/baremesh")
    for unit in (PROGRAMS.parents[2] / "systemd").glob("*.service"):
        host.copy(unit, f"/srv/checkout/systemd/{unit.name}")
    manual.is_done("cargo build --release --locked -p baremesh")
    checkout = "cd /srv/checkout && "
    for given in ("install -m 755 target/release/baremesh /usr/bin/", "install -m 644 systemd/*.service /etc/systemd/system/"):
        host.run(checkout + given)
        manual.is_done(given)
    manual.run(host, "groupadd --system --force baremesh")
    manual.run(host, "systemctl daemon-reload")
    token = token_in(control.run("baremesh token create --rejoin web1"))
    host.run(f"baremesh join {control.address} --token {token} && systemctl enable --now baremesh")
    host.run("baremesh status")
    report.holds("a host without a package is a member")
    said = host.run(f"apt install -y -o Dpkg::Options::=--force-confnew /srv/{package.deb.name}")
    report.check("a package over it says which units count instead of its own",
                 "/etc/systemd/system/baremesh.service counts instead of the package's" in said, said)
    manual.is_done("dnf install ./baremesh-0.1.0-1.x86_64.rpm")
