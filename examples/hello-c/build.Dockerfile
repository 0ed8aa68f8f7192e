# The first half of build.sh: compiles, and is thrown away.
ARG SUITE=bookworm

FROM deb://$SUITE?packages=gcc,libc6-dev,dash,coreutils
WORKDIR /src
COPY hello.c .
RUN gcc -O2 -static -o /hello hello.c
