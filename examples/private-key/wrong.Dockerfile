# The key is a build arg and the image is the stage that used it: it is in the history and in a layer, even though it is
# removed by the step after. kiln fails with exit code 4 and says where the key is.
ARG SUITE=bookworm

FROM deb://$SUITE?packages=dash,coreutils
ARG SSH_PRIVATE_KEY
RUN echo "$SSH_PRIVATE_KEY" > /key
RUN wc -l < /key > /gem
RUN rm /key
CMD ["cat", "/gem"]
