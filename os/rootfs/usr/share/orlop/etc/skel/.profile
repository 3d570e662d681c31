. /etc/profile
[ -f ~/.bashrc ] && . ~/.bashrc
