# The program is linked dynamically: its base has the C library and nothing else, no shell either.
ARG SUITE=bookworm

FROM deb://$SUITE?packages=gcc,libc6-dev,dash,coreutils AS build
WORKDIR /src
COPY hello.c .
RUN gcc -O2 -o /hello hello.c

FROM deb://$SUITE?packages=libc6
COPY --from=build /hello /usr/local/bin/hello
CMD ["hello"]
