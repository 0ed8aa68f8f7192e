# One stage: the image holds the compiler as well.
FROM deb://bookworm?packages=gcc,libc6-dev,dash,coreutils
WORKDIR /src
COPY hello.c .
RUN gcc -O2 -static -o /hello hello.c
CMD ["/hello"]
