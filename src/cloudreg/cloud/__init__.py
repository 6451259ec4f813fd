"""Amazon's cloud: machines that run while they are needed, buckets, and commands on other machines.

`ec2` starts a machine and stops it whatever happens, `ssh` runs a command on one, `remote` does both; `s3` and `awscli`
move files, `buckets` and `share` make a bucket and show it to browsers. Their libraries are the extra ``aws`` and are
imported when a function needs them.
"""
