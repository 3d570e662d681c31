#!/bin/sh
# A metadata service for a machine in QEMU, which runs this for each connection (`guestfwd=…-cmd:`): EC2's tree, where
# nothing is given without a token, and a NoCloud seed. The argument is the SSH key.
cr=$(printf '\r')
read -r method path _
token=
while read -r line && [ "$line" != "$cr" ] && [ -n "$line" ]; do
    case $line in
    [Xx]-[Aa][Ww][Ss]-[Ee][Cc]2-[Mm][Ee][Tt][Aa][Dd][Aa][Tt][Aa]-[Tt][Oo][Kk][Ee][Nn]:*t0ken*) token=yes ;;
    esac
done
status='200 OK'
case "$method $path $token" in
'PUT /latest/api/token '*) body=t0ken ;;
'GET /latest/'*' yes' | 'GET / yes')
    # shellcheck disable=SC2016 # cloudinit puts the address in
    case $path in
    /) body=latest ;;
    /latest/meta-data/instance-id) body=i-1 ;;
    /latest/meta-data/local-hostname) body=from-ec2 ;;
    /latest/meta-data/local-ipv4) body=192.0.2.77 ;;
    /latest/meta-data/public-keys | /latest/meta-data/public-keys/) body=0=lab ;;
    /latest/meta-data/public-keys/0/openssh-key) body=$1 ;;
    /latest/user-data) body='#cloud-config
write_files: [{path: /etc/fetched, content: "from $private_ipv4"}]
coreos: {units: [{name: fetched.service, content: "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n", command: start}]}' ;;
    *) body='' status='404 Not Found' ;;
    esac
    ;;
'GET /latest/'*) body='' status='401 Unauthorized' ;;
'GET /seed/meta-data '*) body="{instance-id: seed-1, local-hostname: from-seed, public-keys: ['$1']}" ;;
'GET /seed/user-data '*) body='#cloud-config
hostname: not-this-one' ;;
'GET /user-data '*) body='#include
http://169.254.169.253/part' ;;
'GET /part '*) body='{"ignition": {"version": "3.4.0"}, "storage": {"files": [{"path": "/etc/motto", "contents": {"source": "http://169.254.169.253/motto"}}]}}' ;;
'GET /motto '*) body='from far away' ;;
*) body='' status='404 Not Found' ;;
esac
printf 'HTTP/1.1 %s\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s' "$status" "$(printf %s "$body" | wc -c)" "$body"
