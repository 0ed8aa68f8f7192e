# One stage: the image holds the compiler as well.
ARG SUITE=bookworm

FROM deb://$SUITE?packages=gcc,libc6-dev,dash,coreutils
WORKDIR /src
COPY hello.c .
RUN gcc -O2 -static -o /hello hello.c
CMD ["/hello"]
